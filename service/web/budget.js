/** The four limits: sliders with ranges from the plans, and the Compute-Budget field that they make. */

import { short } from "./format.js";

const LOSSES = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1];

const linear = (low, high, steps, round) => ({
  steps,
  value: (position) => round(low + ((high - low) * position) / Math.max(1, steps)),
  share: (value) => (high > low ? (value - low) / (high - low) : 0),
});

const logarithmic = (low, high, steps, round) => ({
  steps,
  value: (position) => round(low * (high / low) ** (position / steps)),
  share: (value) => Math.log(value / low) / Math.log(high / low),
});

/** At most three decimals, as the header's format allows; fewer for larger values. */
const tidy = (value) => Number(value.toFixed(value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0));

/**
 * How each limit is drawn. `cost` is what a plan spends of it, null if that was not measured yet. A limit without
 * `cost` is not a ceiling on plans.
 */
const LIMITS = [
  {
    key: "depth", name: "Depth", help: "Most encoder layers", off: "no limit", start: 1,
    cost: (plan) => plan.depth,
    text: (value) => `≤ ${value} ${value === 1 ? "layer" : "layers"}`,
    scale: (plans) => {
      const most = Math.max(...plans.map((plan) => plan.depth));
      return linear(1, most, most - 1, Math.round);
    },
  },
  {
    key: "gflops", name: "Compute", help: "Most GFLOPs for the image", off: "no limit", start: 1,
    cost: (plan) => plan.gflops,
    text: (value) => `≤ ${short(value)} GFLOPs`,
    scale: (plans) => {
      const costs = plans.map((plan) => plan.gflops);
      return linear(Math.min(...costs) * 0.94, Math.max(...costs) * 1.03, 120, tidy);
    },
  },
  {
    key: "ms", name: "Deadline", help: "Milliseconds on the server, queueing included", off: "no limit", start: 1,
    cost: (plan) => plan.ms,
    text: (value) => `≤ ${short(value)} ms`,
    scale: (plans) => {
      const costs = plans.map((plan) => plan.ms).filter((ms) => ms !== null);
      const low = Math.max(1, Math.min(...costs, 1000) * 0.7);
      return logarithmic(low, Math.max(low, ...costs) * 4, 120, (value) => Math.max(1, tidy(value)));
    },
  },
  {
    key: "max-loss", name: "Max loss", help: "Largest expected loss of quality against the full plan",
    off: "node’s default", start: 4 / (LOSSES.length - 1),
    text: (value) => (value === 0 ? "0, full plan" : `≤ ${value}`),
    scale: () => ({ steps: LOSSES.length - 1, value: (position) => LOSSES[position], share: () => 0 }),
  },
];

export class BudgetForm {
  /**
   * @param {HTMLElement} host receives one row per limit
   * @param {HTMLTemplateElement} template
   * @param {object[]} plans of GET /plans
   * @param {(settled: boolean) => void} changed settled is false while a slider is being dragged
   */
  constructor(host, template, plans, changed) {
    this.plans = plans;
    this.rows = LIMITS.map((limit) => {
      const node = template.content.cloneNode(true).firstElementChild;
      const row = {
        limit,
        node,
        scale: limit.scale(plans),
        on: node.querySelector("input[type=checkbox]"),
        range: node.querySelector("input[type=range]"),
        output: node.querySelector("output"),
      };
      node.dataset.key = limit.key;
      row.range.id = `limit-${limit.key}`;
      row.output.htmlFor = row.range.id;
      row.range.max = String(row.scale.steps);
      row.range.value = String(Math.round(row.scale.steps * limit.start));
      row.range.setAttribute("aria-label", `${limit.name}: ${limit.help}`);
      node.querySelector(".name").textContent = limit.name;
      node.title = limit.help;
      row.marks = limit.cost ? plans.map((plan) => this.#mark(node.querySelector(".marks"), row, plan)) : [];
      row.range.addEventListener("input", () => { row.on.checked = true; this.refresh(); changed(false); });
      row.range.addEventListener("change", () => changed(true));
      row.on.addEventListener("change", () => { this.refresh(); changed(true); });
      host.append(node);
      return row;
    });
    this.refresh();
  }

  /** Other plans, for another preference: limits keep their positions between the least and the most. */
  use(plans) {
    this.plans = plans;
    for (const row of this.rows) {
      const share = Number(row.range.value) / (row.scale.steps || 1);
      row.scale = row.limit.scale(plans);
      row.range.max = String(row.scale.steps);
      row.range.value = String(Math.round(row.scale.steps * share));
      const host = row.node.querySelector(".marks");
      host.replaceChildren();
      row.marks = row.limit.cost ? plans.map((plan) => this.#mark(host, row, plan)) : [];
    }
    this.refresh();
  }

  #mark(host, row, plan) {
    const mark = document.createElement("i");
    const cost = row.limit.cost(plan);
    mark.hidden = cost === null;
    mark.style.setProperty("--at", String(cost === null ? 0 : Math.min(1, Math.max(0, row.scale.share(cost)))));
    host.append(mark);
    return mark;
  }

  /** The active limits: {key: value}. */
  values() {
    const on = this.rows.filter((row) => row.on.checked);
    return Object.fromEntries(on.map((row) => [row.limit.key, row.scale.value(Number(row.range.value))]));
  }

  /** The value of Compute-Budget; "" when nothing is limited. */
  header() {
    return Object.entries(this.values()).map(([key, value]) => `${key}=${value}`).join(", ");
  }

  /** The names of the limits that rule a plan out. */
  excludedBy(plan) {
    const values = this.values();
    const over = LIMITS.filter((limit) => limit.cost && limit.key in values && limit.cost(plan) > values[limit.key]);
    return over.map((limit) => limit.name.toLowerCase());
  }

  refresh() {
    const values = this.values();
    for (const { limit, node, range, output, marks, scale } of this.rows) {
      const on = limit.key in values;
      const text = on ? limit.text(values[limit.key]) : limit.off;
      node.classList.toggle("off", !on);
      output.value = text;
      range.setAttribute("aria-valuetext", text);
      range.style.setProperty("--fill", String(scale.steps ? Number(range.value) / scale.steps : 1));
      marks.forEach((mark, i) => {
        mark.classList.toggle("over", on && limit.cost(this.plans[i]) > values[limit.key]);
      });
    }
  }
}
