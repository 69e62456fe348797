/** The same image at every depth, side by side: one request after the other, the deepest first, to compare with. */

import { Problem, segment } from "./client.js";
import { element, percent, serverMs, short } from "./format.js";
import { Labels } from "./labels.js";

const $ = (id) => document.getElementById(id);
const LONGEST = 400; // of a card's picture, in pixels

export class Strip {
  /**
   * @param {number[]} depths ascending
   * @param {number[][]} colors per class id
   * @param {(result: object) => void} chosen a card was pressed: show its result
   */
  constructor(depths, colors, chosen) {
    this.depths = depths;
    this.colors = colors;
    this.chosen = chosen;
    this.cards = [];
    this.running = null;
    $("strip-cancel").addEventListener("click", () => this.stop("Cancelled."));
    $("changes").addEventListener("change", () => this.cards.forEach((card) => this.#draw(card)));
  }

  /** End a run; what is there stays. */
  stop(words = "") {
    if (!this.running) return;
    this.running.abort();
    this.#end(words);
  }

  #end(words) {
    this.running = null;
    $("strip-cancel").hidden = true;
    $("strip-status").textContent = words;
    for (const card of this.cards) if (!card.result) card.node.className = "card idle";
  }

  /** Show which card, if any, is the result on the stage. */
  mark(result) {
    for (const card of this.cards) card.node.setAttribute("aria-pressed", String(card.result === result));
  }

  clear() {
    this.stop();
    this.cards = [];
    $("cards").replaceChildren();
    $("strip").hidden = true;
  }

  /** @throws {Problem} of the first request that fails; the run ends there */
  async run(file) {
    this.clear();
    const control = (this.running = new AbortController());
    this.cards = this.depths.map((depth) => this.#card(depth));
    $("cards").replaceChildren(...this.cards.map((card) => card.item));
    $("strip").hidden = $("strip-cancel").hidden = false;
    $("strip").scrollIntoView({ block: "nearest" });
    const order = [...this.cards].reverse().slice(0, 1).concat(this.cards.slice(0, -1));
    try {
      for (const [done, card] of order.entries()) {
        $("strip-status").textContent = `${done} of ${order.length} done`;
        card.node.className = "card running";
        const budget = `depth=${card.depth}, max-loss=0`;
        const result = await segment(file, budget, control.signal);
        if (this.running !== control) return;
        card.result = { ...result, limits: { depth: card.depth, "max-loss": 0 }, labels: new Labels(result.answer) };
        this.#fill(card);
      }
      this.#end(`${order.length} of ${order.length} done. Press one to look at it.`);
    } catch (error) {
      if (this.running !== control) return; // stopped by hand: said already
      this.#end(error instanceof Problem ? error.title : "Stopped.");
      throw error;
    }
  }

  #card(depth) {
    const node = element("button", "card waiting");
    node.type = "button";
    node.disabled = true;
    node.setAttribute("aria-pressed", "false");
    const canvas = element("canvas");
    canvas.width = LONGEST;
    canvas.height = Math.round(LONGEST / ($("photo").naturalWidth / $("photo").naturalHeight || 4 / 3));
    node.append(canvas, element("span", "sounding", String(depth)), element("span", "numbers"));
    const item = element("li");
    item.append(node);
    const card = { depth, node, item, canvas, result: null };
    node.addEventListener("click", () => this.chosen(card.result));
    return card;
  }

  /** Everything is compared with the last card, which came first. */
  #fill(card) {
    const { answer, labels } = card.result;
    const deepest = this.cards.at(-1).result;
    const differs = card.result !== deepest && percent(labels.difference(deepest.labels));
    const facts = [
      ["ms", short(serverMs(answer.timing_ms))],
      ["GFLOPs", short(answer.usage.gflops)],
      differs ? ["differs", differs] : ["for the others", "reference"],
    ];
    if (answer.usage.depth !== card.depth) facts.push(["ended at", `${answer.usage.depth}, ${answer.usage.reason}`]);
    const numbers = card.node.querySelector(".numbers");
    numbers.replaceChildren(...facts.map(([name, value]) => {
      const fact = element("span");
      fact.append(element("b", "", value), ` ${name}`);
      return fact;
    }));
    card.node.className = "card done";
    card.node.disabled = false;
    card.node.setAttribute("aria-label", `Depth ${card.depth}: ${facts.map((fact) => fact.join(" ")).join(", ")}`);
    this.#draw(card);
  }

  #draw({ canvas, result }) {
    if (!result) return;
    const { labels } = result;
    const against = $("changes").checked ? this.cards.at(-1).result.labels : null;
    const masks = document.createElement("canvas");
    labels.paint(masks, this.colors, { longest: LONGEST, against });
    [canvas.width, canvas.height] = [masks.width, masks.height];
    const pen = canvas.getContext("2d");
    const photo = $("photo");
    if (photo.naturalWidth) pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = against ? 1 : 0.66;
    pen.drawImage(masks, 0, 0);
  }
}
