/** The page: connects the photo, the budget, the result and the strip of plans with the service. */

import { BudgetForm } from "./budget.js";
import { Problem, curlLine, getPlans, segment } from "./client.js";
import { takeFiles } from "./files.js";
import { bytes } from "./format.js";
import { askKey } from "./key.js";
import { Labels } from "./labels.js";
import { PreferenceForm } from "./preference.js";
import { problem } from "./problem.js";
import { Reading } from "./reading.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";
import { Views } from "./views.js";

const $ = (id) => document.getElementById(id);
const SETTLE_MS = 300; // arrow keys on a slider come in bursts: wait for the last one before a request

const nameOf = (file) => file.name || "pasted image";

const otherBundle = () => new Problem({
  title: "The service now serves another bundle",
  detail: "Its plans and classes are not those of this page.",
  reload: true,
});

class App {
  constructor(info) {
    this.info = info;
    this.file = null;
    this.running = new AbortController();
    this.settle = 0;
    this.planned = ""; // the preference that the plans are for; null if they may be outdated
    this.reading = new Reading(info);
    // The photo has the masks of the head that matters most of those that give any.
    const masks = info.heads.filter((head) => head.gives === "masks").sort((a, b) => b.weight - a.weight);
    this.main = masks[0] ?? { name: "", classes: [], objects: false };
    this.stage = new Stage(this.main.classes);
    this.views = new Views(info.heads);
    this.include = [];
    if (info.plans.some((plan) => plan.keep < 1)) this.include.push("paused");
    if (info.heads.some((head) => head.gives === "values")) this.include.push("values");
    const labelled = (answer) => this.#labels(answer);
    this.strip = new Strip(info, this.stage.colors, labelled, (result) => {
      this.show(result);
      $("drop").scrollIntoView({ block: "nearest" }); // the cards are far below, most of all on a phone
    });
    this.form = new BudgetForm($("limits"), $("limit"), info.plans, (settled) => this.limited(settled));
    this.preference = new PreferenceForm($("weights"), info.heads, (settled) => this.preferred(settled));
    this.#facts();
    $("run").addEventListener("click", () => this.run());
    $("every").addEventListener("click", () => this.everyPlan());
    $("stretch").addEventListener("change", () => {
      this.strip.clear(); // its pictures are of other values
      this.limited(true);
    });
    this.limited(false);
  }

  #facts() {
    const { bundle, canvases, classes, heads, plans, task } = this.info;
    const several = heads.map(({ name }) => name).join(", ");
    const alone = `${task} · ${classes.length === 1 ? "1 class" : `${classes.length} classes`}`;
    const where = canvases.length > 1 ? ` on ${canvases.length} canvases` : "";
    const facts = [bundle.name, heads.length > 1 ? several : alone, `${plans.length} plans${where}`];
    $("bundle").textContent = facts.join(" · ");
  }

  /** The limits changed; ask again once they have settled. */
  limited(settled) {
    const { budget, preference, values } = this.#ask();
    const lines = [budget ? `Compute-Budget: ${budget}` : "no Compute-Budget: the gate decides"];
    if (preference) lines.push(`Task-Preference: ${preference}`);
    if (values) lines.push(`Value-Range: ${values}`);
    $("header-sent").textContent = lines.join("\n");
    this.#writeCurl();
    this.reading.afford((plan) => this.form.excludedBy(plan));
    if (!settled) return;
    clearTimeout(this.settle);
    if (this.preference.some) this.settle = setTimeout(() => this.update(), SETTLE_MS);
  }

  /** The preference changed: other plans are open. */
  preferred(settled) {
    $("run").disabled = $("every").disabled = !(this.file && this.preference.some);
    this.limited(settled);
  }

  #ask() {
    const values = $("stretch").checked ? "auto" : "";
    return { budget: this.form.header(), preference: this.preference.header(), values, include: this.include };
  }

  #writeCurl() {
    $("curl").textContent = curlLine(this.file, this.#ask());
  }

  /** Ask for what the sliders say: the plans, if the preference is another, and the photo's masks. */
  async update() {
    if (this.file) return this.run();
    const signal = this.#begin();
    try {
      await this.#replan(signal);
    } catch (error) {
      if (!signal.aborted) problem.show(error, () => this.update());
    }
  }

  /** Get the plans for the sliders' preference, unless they are here. Returns the preference. */
  async #replan(signal) {
    const preference = this.preference.header();
    if (preference === this.planned) return preference;
    const { plans, bundle } = await getPlans(preference, signal);
    signal.throwIfAborted();
    const { name, revision } = this.info.bundle;
    if (bundle.name !== name || bundle.revision !== revision) throw otherBundle();
    this.info = { ...this.info, plans };
    this.planned = preference;
    this.#facts();
    this.reading = new Reading(this.info);
    this.form.use(plans);
    this.strip.use(plans);
    this.limited(false);
    return preference;
  }

  /** What each head says, by name. */
  #heads(answer) {
    return answer.heads ?? { [this.info.heads[0].name]: answer };
  }

  /** @throws {Problem} if the plan is unknown: the service was started with another bundle */
  #labels(answer) {
    if (!this.info.plans.some(({ name }) => name === answer.usage.plan)) throw otherBundle();
    const { segments } = this.#heads(answer)[this.main.name] ?? {};
    return new Labels({ ...answer, segments }, this.main.objects);
  }

  /** of: how many files came; the first is taken. */
  async open(file, of = 1) {
    this.#begin();
    this.strip.clear();
    this.views.clear();
    this.reading.clear();
    this.file = file;
    const facts = [nameOf(file), bytes(file.size)];
    if (of > 1) facts.push(`the first of ${of} files`);
    $("photo-facts").textContent = facts.join(" · ");
    this.limited(false);
    const drawn = await this.stage.load(file);
    if (this.file !== file) return;
    if (drawn) facts.push(`${$("photo").naturalWidth} × ${$("photo").naturalHeight}`);
    $("photo-facts").textContent = facts.join(" · ");
    $("run").disabled = $("every").disabled = !this.preference.some;
    if (this.preference.some) await this.run();
  }

  /** Refuse a body that is too large before it is sent: some browsers show a broken connection instead of the 413. */
  #checkSize() {
    const most = this.info.limits.max_body_bytes;
    if (this.file.size <= most) return;
    throw new Problem({
      title: "The image is over a limit",
      detail: `It has ${bytes(this.file.size)}, ${bytes(this.file.size - most)} more than the ${bytes(most)} that this service takes.`,
      status: 413,
    });
  }

  /** Something else is asked for: what runs ends, and what waits does not begin. */
  #begin() {
    clearTimeout(this.settle);
    this.running.abort();
    this.strip.stop("Cancelled.");
    this.running = new AbortController();
    this.#writeCurl(); // there may be a key by now
    problem.hide();
    this.#busy(false);
    return this.running.signal;
  }

  #busy(on) {
    $("busy").hidden = !on;
    $("drop").setAttribute("aria-busy", String(on));
    $("progress").textContent = on ? "Segmenting the photo" : "";
  }

  async run() {
    const signal = this.#begin();
    this.#busy(true);
    try {
      this.#checkSize();
      const preference = await this.#replan(signal);
      const limits = this.form.values();
      const result = await segment(this.file, { ...this.#ask(), preference }, signal);
      signal.throwIfAborted();
      await this.show({ ...result, limits, labels: this.#labels(result.answer) });
    } catch (error) {
      if (!signal.aborted) this.#failed(error, () => this.run());
    } finally {
      if (!signal.aborted) this.#busy(false);
    }
  }

  async show(result) {
    const { answer } = result;
    this.stage.show(result.labels, answer.image);
    this.reading.show(result);
    this.strip.mark(result);
    await this.views.show(answer.image, this.#heads(answer), this.main.name);
  }

  /** Show an error, and remove the masks and figures of an earlier answer. */
  #failed(error, again) {
    problem.show(error, again);
    // Whoever answers next may have been started with other plans, or with another bundle.
    if (error.status === 0 || error.status >= 500) this.planned = null;
    this.stage.clear();
    this.views.clear();
    this.reading.fail(error);
    this.strip.mark(null);
  }

  async everyPlan(resume = false) {
    const signal = this.#begin();
    try {
      this.#checkSize();
      const preference = await this.#replan(signal);
      await this.strip.run(this.file, { ...this.#ask(), preference }, resume);
    } catch (error) {
      if (!signal.aborted) problem.show(error, () => this.everyPlan(true));
    }
  }
}

async function copyCurl() {
  const label = (words) => {
    $("copy").textContent = words;
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  };
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    label("Copied");
  } catch {
    getSelection().selectAllChildren($("curl")); // there is no clipboard outside https and localhost
    label("Selected");
  }
}

let begin;
// A photo that comes before the plans or the key waits for this promise.
const app = new Promise((resolve) => { begin = resolve; });

async function start() {
  problem.hide();
  try {
    begin(new App(await getPlans()));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    problem.show(error, start, true);
  }
}

takeFiles(async (file, of) => {
  if (!document.documentElement.dataset.ready) {
    $("waiting").textContent = `${nameOf(file)} waits until the service can be used.`;
    problem.recall();
  }
  const page = await app;
  $("waiting").textContent = "";
  page.open(file, of);
});
$("copy").addEventListener("click", copyCurl);
$("problem-close").addEventListener("click", () => problem.dismiss());
start();
