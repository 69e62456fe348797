/** How much each head matters: a slider per head, and the Task-Preference field that they make. */

import { element } from "./format.js";

const STEPS = 10;

export class PreferenceForm {
  /**
   * @param {HTMLElement} host receives one row per head; it stays hidden with one head
   * @param {{name: string, task: string, weight: number}[]} heads of GET /plans
   * @param {(settled: boolean) => void} changed settled is false while a slider is being dragged
   */
  constructor(host, heads, changed) {
    this.touched = false;
    host.hidden = heads.length < 2;
    this.rows = host.hidden ? [] : heads.map((head) => {
      const node = element("div", "limit");
      const [label, output, range] = [element("label", "name", head.name), element("output"), element("input")];
      Object.assign(range, { type: "range", id: `weight-${head.name}`, min: "0", max: String(STEPS), step: "1" });
      range.value = String(Math.round(head.weight * STEPS));
      label.htmlFor = output.htmlFor = range.id;
      const track = element("div", "track");
      track.append(range);
      node.append(label, output, track);
      const row = { head, node, output, range };
      range.addEventListener("input", () => { this.touched = true; this.#refresh(); changed(false); });
      range.addEventListener("change", () => changed(true));
      host.append(node);
      return row;
    });
    if (!host.hidden) {
      this.note = element("p", "fine");
      this.note.setAttribute("aria-live", "polite");
      host.append(this.note);
      this.#refresh();
    }
  }

  /** Whether some head is asked for. */
  get some() {
    return !this.rows.length || this.rows.some((row) => Number(row.range.value) > 0);
  }

  /** The value of Task-Preference; "" while it is the bundle's own. */
  header() {
    if (!this.touched || !this.some) return "";
    const asked = this.rows.filter((row) => Number(row.range.value) > 0);
    return asked.map(({ head, range }) => `${head.name}=${Number(range.value) / STEPS}`).join(", ");
  }

  #refresh() {
    const total = this.rows.reduce((sum, row) => sum + Number(row.range.value), 0);
    for (const { node, output, range } of this.rows) {
      const weight = Number(range.value);
      const text = weight ? `${Math.round((100 * weight) / total)} %` : "not run";
      output.value = text;
      node.classList.toggle("off", !weight);
      range.setAttribute("aria-valuetext", text);
      range.style.setProperty("--fill", String(weight / STEPS));
    }
    this.note.textContent = this.some ? "The more a head matters, the more of the budget goes to it."
      : "Give at least one head a weight.";
  }
}
