/** The result: which plan an image took, why, and what that cost. */

import { cost, described, element, knobs, narrowed, openTo, serverMs, short, size } from "./format.js";

const $ = (id) => document.getElementById(id);

const list = (words) => (words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words.join(""));

/** Compute-Used's reason in words. */
function why(reason, isFull, limits) {
  const deadline = limits.ms ? `the deadline of ${short(limits.ms)} ms` : "the node's deadline";
  const ceilings = list(["depth", "gflops"].filter((key) => key in limits));
  return {
    gate: limits["max-loss"] === 0 ? "No loss was allowed, so the full plan ran."
      : isFull ? "The gate expects too large a loss from any cheaper plan."
      : "The gate expects that a more expensive plan would gain too little to be worth it.",
    request: `The gate asked for a more expensive plan, but this request's limit on ${ceilings || "compute"} rules it out.`,
    node: "The gate asked for a more expensive plan, but this node's own limit rules it out.",
    deadline: `A more expensive plan was expected to miss ${deadline}.`,
    load: "This node’s objective, or what waits, leaves no time for the plan that the gate asked for.",
  }[reason] ?? `Reason: ${reason}.`;
}

/** Where the image was looked at, for bundles with several canvases. */
function where(canvas, glance) {
  const pixels = `${size(canvas)} pixels`;
  return canvas.name === glance ? ` The plan stays on the canvas of the gate's glance, ${pixels}.`
    : ` The gate glanced at the image on ${glance}; the plan looks at it on ${canvas.name}, ${pixels}.`;
}

export class Reading {
  /** @param {{plans: object[], canvases: object[], glance: string}} info of GET /plans; its plans, the cheapest first */
  constructor({ plans, canvases, glance }) {
    this.plans = plans;
    this.canvases = canvases;
    this.glance = glance;
    this.several = canvases.length > 1;
    this.rows = plans.map((plan, index) => {
      const row = element("tr");
      row.style.setProperty("--i", String(plans.length > 1 ? index / (plans.length - 1) : 1));
      row.dataset.plan = plan.name;
      const mark = element("th", "mark");
      mark.scope = "row";
      mark.append(element("i", "line"), element("span", "sounding", String(plan.depth)));
      const labels = [this.several ? plan.canvas : "", knobs(plan), ...narrowed(plan)].filter(Boolean);
      const small = element("small");
      small.append(...labels.map((label) => element("span", "", label)));
      if (labels.length) mark.append(small);
      row.append(mark, ...[cost(plan.gflops), plan.ms === null ? "–" : short(plan.ms), plan.quality.toFixed(3)]
        .map((text) => element("td", "", text)));
      return row;
    });
    $("gauge").tBodies[0].replaceChildren(...this.rows);
    $("gauge").classList.toggle("dense", plans.length > 7);
    $("knobs").hidden = !plans.some((plan) => knobs(plan) || narrowed(plan).length);
    $("knobs-heads").hidden = !plans.some((plan) => narrowed(plan).length);
    $("canvases").textContent = `Canvases, in pixels. ${canvases.map(described).join(" ")} The gate glances at every image on ${glance}.`;
    $("canvases").hidden = !this.several;
  }

  /** Show which plans the limits leave. */
  afford(excludedBy) {
    let left = 0;
    this.rows.forEach((row, index) => {
      const over = excludedBy(this.plans[index]);
      row.classList.toggle("over", over.length > 0);
      row.title = over.length ? `Over the limit on ${list(over)}` : "";
      left += over.length ? 0 : 1;
    });
    $("fits").textContent = left ? `${left} of ${this.plans.length} plans fit the budget.`
      : "No plan fits the budget: the service will refuse.";
  }

  clear() {
    for (const row of this.rows) ["data-reach", "aria-current"].forEach((name) => row.removeAttribute(name));
    $("depth-taken").textContent = $("why").textContent = "";
    $("figures").hidden = true;
    this.#answered("", "");
  }

  #answered(used, requestId) {
    $("header-used").textContent = used || "–";
    $("request-id").textContent = requestId || "–";
  }

  /** There is no result: show what came back instead. */
  fail(problem) {
    this.clear();
    $("why").textContent = "No result: the service refused the image or could not answer.";
    this.#answered(`${problem.status || ""} ${problem.title ?? problem.message}`.trim(), problem.requestId);
  }

  /** @param {object} result of client.segment, and the limits that were sent */
  show({ answer, used, requestId, roundTripMs, limits }) {
    const { plan, canvas, depth, of, gflops, reason, predicted_quality: quality } = answer.usage;
    const taken = this.plans.findIndex((candidate) => candidate.name === plan);
    const reduced = [knobs(this.plans[taken]), ...narrowed(this.plans[taken])].filter(Boolean).join(" ");
    this.rows.forEach((row, index) => {
      row.dataset.reach = index < taken ? "passed" : index === taken ? "taken" : "beyond";
      if (index === taken) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
    // Within the table alone: the page stays where it is.
    const row = this.rows[taken];
    $("plans").scrollTop = row.offsetTop - ($("plans").clientHeight - row.offsetHeight) / 2;
    const line = ["depth ", element("b", "", String(depth)), ` of ${of}`];
    if (this.several) line.unshift("canvas ", element("b", "canvas", canvas.name));
    if (reduced) line.push(element("small", "", reduced));
    $("depth-taken").replaceChildren(...line, element("span", `reason ${reason}`, reason));
    const full = openTo(this.plans, this.canvases, answer.image).at(-1).name;
    $("why").textContent = why(reason, plan === full, limits)
      + (this.several ? where(canvas, this.glance) : "");
    $("gflops").textContent = cost(gflops);
    $("quality").textContent = quality.toFixed(3);
    $("server-ms").textContent = `${short(serverMs(answer.timing_ms))} ms`;
    $("round-trip").textContent = `${short(roundTripMs)} ms`;
    this.#answered(used && `Compute-Used: ${used}`, requestId);
    this.#stages(Object.entries(answer.timing_ms));
    $("figures").hidden = false;
  }

  #stages(entries) {
    const pieces = [$("stages"), $("stage-list")];
    for (const piece of pieces) piece.replaceChildren();
    for (const [name, ms] of entries) {
      const piece = element("i", `stage-${name}`);
      piece.style.flexGrow = String(ms);
      pieces[0].append(piece);
      const item = element("li");
      item.append(element("i", `swatch stage-${name}`), element("span", "", name), element("b", "", short(ms)));
      pieces[1].append(item);
    }
  }
}
