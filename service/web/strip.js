/**
 * The same image with every plan, side by side, a row for each canvas: one request after the other, first the full
 * plan to compare with.
 */

import { Problem, segment } from "./client.js";
import { cost, element, knobs, narrowed, openTo, percent, serverMs, short, size } from "./format.js";

const $ = (id) => document.getElementById(id);
const LONGEST = 400; // the longer side of a card's picture, in pixels

export class Strip {
  /**
   * @param {{plans: object[], canvases: object[]}} info of GET /plans; its plans, the cheapest first
   * @param {number[][]} colors per class id
   * @param {(answer: object) => Labels} labelled the masks of an answer
   * @param {(result: object) => void} chosen a card was pressed: show its result
   */
  constructor({ plans, canvases }, colors, labelled, chosen) {
    this.plans = plans;
    this.canvases = canvases;
    this.colors = colors;
    this.labelled = labelled;
    this.chosen = chosen;
    this.cards = [];
    this.running = null;
    $("strip-cancel").addEventListener("click", () => this.stop("Cancelled."));
    $("changes").addEventListener("change", () => this.cards.forEach((card) => this.#draw(card)));
  }

  /** Other plans, for another value of Task-Preference. */
  use(plans) {
    this.clear();
    this.plans = plans;
  }

  /** End a run; finished cards stay. */
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

  /** Mark the card, if any, of the result that is shown. */
  mark(result) {
    for (const card of this.cards) card.node.setAttribute("aria-pressed", String(card.result === result));
  }

  clear() {
    this.stop();
    this.cards = [];
    $("cards").replaceChildren();
    $("strip").hidden = true;
  }

  /**
   * @param {File} file
   * @param {Ask} ask as in client.js; each plan has its own budget
   * @param {boolean} resume whether cards that are done stay as they are
   * @throws {Problem} of the first request that fails; the run ends there
   */
  async run(file, ask, resume) {
    if (!resume) this.clear();
    const control = (this.running = new AbortController());
    if (!this.cards.length) this.#deal();
    $("strip").hidden = $("strip-cancel").hidden = false;
    $("strip").scrollIntoView({ block: "nearest" });
    const order = [this.cards.at(-1), ...this.cards.slice(0, -1)];
    try {
      for (const [done, card] of order.entries()) {
        if (card.result) continue;
        $("strip-status").textContent = `${done} of ${order.length} done`;
        card.node.className = "card running";
        // With max-loss=0 the service takes the most expensive plan under this ceiling.
        const limits = { gflops: card.plan.gflops, "max-loss": 0 };
        const budget = `gflops=${limits.gflops}, max-loss=0`;
        const result = await segment(file, { ...ask, budget }, control.signal);
        if (this.running !== control) return;
        card.result = { ...result, limits, labels: this.labelled(result.answer) };
        this.#fill(card);
      }
      this.#end(`${order.length} of ${order.length} done. Press one to look at it.`);
    } catch (error) {
      if (this.running !== control) return; // stopped by hand: the status says so already
      this.#end(error instanceof Problem ? error.title : "Stopped.");
      throw error;
    }
  }

  /** A card for each plan that the photo may take: in one row, or in a row for each canvas below its name. */
  #deal() {
    const { naturalWidth: width, naturalHeight: height } = $("photo");
    this.cards = openTo(this.plans, this.canvases, { width, height }).map((plan) => this.#card(plan));
    const names = this.canvases.map(({ name }) => name);
    const groups = names.map((name) => this.cards.filter(({ plan }) => plan.canvas === name));
    const rows = groups.filter((cards) => cards.length).map((cards) => {
      const row = element("ol", "cards");
      row.append(...cards.map((card) => card.item));
      if (names.length < 2) return [row];
      const heading = element("h3", "", cards[0].plan.canvas);
      heading.id = `strip-${cards[0].plan.canvas}`;
      heading.append(" ", element("span", "facts"));
      row.setAttribute("aria-labelledby", heading.id);
      return [heading, row];
    });
    const most = Math.max(...groups.map((cards) => cards.length));
    $("cards").style.setProperty("--columns", String(names.length < 2 ? most : Math.max(4, most)));
    $("cards").replaceChildren(...rows.flat());
  }

  #card(plan) {
    const node = element("button", "card waiting");
    node.type = "button";
    node.disabled = true;
    node.setAttribute("aria-pressed", "false");
    const canvas = element("canvas");
    const ratio = $("photo").naturalWidth / $("photo").naturalHeight || 4 / 3;
    canvas.width = Math.max(1, Math.round(LONGEST * Math.min(1, ratio)));
    canvas.height = Math.max(1, Math.round(LONGEST / Math.max(1, ratio)));
    const sounding = element("span", "sounding", String(plan.depth));
    if (knobs(plan)) sounding.append(element("small", "", knobs(plan)));
    node.append(canvas, sounding);
    const heads = element("span", "heads"); // below the picture, which their names would cover
    heads.append(...narrowed(plan).map((name) => element("span", "", name)));
    if (heads.hasChildNodes()) node.append(heads);
    node.append(element("span", "numbers"));
    const item = element("li");
    item.append(node);
    const card = { plan, node, item, canvas, result: null };
    node.addEventListener("click", () => this.chosen(card.result));
    return card;
  }

  /** Show a card's result, compared with the last card's, which ran first. */
  #fill(card) {
    const { answer, labels } = card.result;
    const { canvas, plan } = answer.usage;
    const shape = $(`strip-${canvas.name}`)?.querySelector(".facts");
    if (shape) shape.textContent = `${size(canvas)} pixels`;
    const full = this.cards.at(-1).result;
    const differs = card.result !== full && percent(labels.difference(full.labels));
    const facts = [
      ["ms", short(serverMs(answer.timing_ms))],
      ["GFLOPs", cost(answer.usage.gflops)],
    ];
    if (labels.asked) facts.push(differs ? ["differs", differs] : ["for the others", "reference"]);
    if (labels.objects) facts.push(["objects", String(labels.segments.length)]);
    if (plan !== card.plan.name) facts.push(["ran", `${plan}, ${answer.usage.reason}`]);
    const numbers = card.node.querySelector(".numbers");
    numbers.replaceChildren(...facts.map(([name, value]) => {
      const fact = element("span");
      fact.append(element("b", "", value), ` ${name}`);
      return fact;
    }));
    card.node.className = "card done";
    card.node.disabled = false;
    card.node.setAttribute("aria-label", `Plan ${card.plan.name}: ${facts.map((fact) => fact.join(" ")).join(", ")}`);
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
