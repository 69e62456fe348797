/** The page: connects the photo, the budget, the result and the strip of plans with the service. */

import { BudgetForm } from "./budget.js";
import { Problem, curlLine, getPlans, segment } from "./client.js";
import { bytes } from "./format.js";
import { askKey } from "./key.js";
import { Labels } from "./labels.js";
import { Reading } from "./reading.js";
import { Stage } from "./stage.js";
import { Strip } from "./strip.js";

const $ = (id) => document.getElementById(id);
const SETTLE_MS = 300; // arrow keys on a slider come in bursts: wait for the last one before a request

const problem = {
  timer: 0,
  hide() {
    clearInterval(this.timer);
    $("problem").hidden = true;
  },
  /**
   * @param {unknown} error
   * @param {() => void} [again] what a retry does
   * @param {boolean} [alone] whether to retry automatically once the service's Retry-After has passed
   */
  show(error, again, alone = false) {
    this.hide();
    if (error?.name === "AbortError") return;
    if (error?.status === 401) {
      askKey(error, again);
      return;
    }
    const known = error instanceof Problem;
    if (!known) console.error(error);
    $("problem-title").textContent = known ? error.title : "The answer could not be shown";
    $("problem-detail").textContent = known ? error.detail : String(error?.message ?? error);
    const retry = $("problem-retry");
    retry.hidden = !again || !known || (error.retryAfter === null && error.status !== 0);
    retry.onclick = () => { this.hide(); again(); };
    const due = Date.now() + (known ? (error.retryAfter ?? 0) * 1000 : 0);
    const count = () => {
      const left = Math.ceil((due - Date.now()) / 1000);
      retry.disabled = left > 0;
      retry.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      if (left > 0) return;
      clearInterval(this.timer);
      if (alone && error.retryAfter !== null) retry.click();
    };
    this.timer = setInterval(count, 250);
    count();
    $("problem").hidden = false;
  },
};

class App {
  constructor(info) {
    this.info = info;
    this.file = null;
    this.running = null;
    this.settle = 0;
    this.reading = new Reading(info);
    this.stage = new Stage(info.classes);
    this.include = info.plans.some((plan) => plan.keep < 1) ? "paused" : "";
    this.strip = new Strip(info, this.include, this.stage.colors, (result) => this.show(result));
    this.form = new BudgetForm($("limits"), $("limit"), info.plans, (settled) => this.limited(settled));
    const classes = info.classes.length === 1 ? "1 class" : `${info.classes.length} classes`;
    const canvases = info.canvases.length > 1 ? ` on ${info.canvases.length} canvases` : "";
    const facts = [info.bundle.name, info.task, classes, `${info.plans.length} plans${canvases}`];
    $("bundle").textContent = facts.join(" · ");
    $("run").addEventListener("click", () => this.run());
    $("every").addEventListener("click", () => this.everyPlan());
    this.limited(false);
  }

  /** The limits changed; segment again once they have settled. */
  limited(settled) {
    const header = this.form.header();
    $("header-sent").textContent = header ? `Compute-Budget: ${header}` : "no Compute-Budget: the gate decides";
    this.#writeCurl();
    this.reading.afford((plan) => this.form.excludedBy(plan));
    clearTimeout(this.settle);
    if (settled && this.file) this.settle = setTimeout(() => this.run(), SETTLE_MS);
  }

  #writeCurl() {
    $("curl").textContent = curlLine(this.file, this.form.header(), this.include);
  }

  async open(file) {
    this.running?.abort();
    this.strip.clear();
    this.reading.clear();
    problem.hide();
    this.file = file;
    $("photo-facts").textContent = `${file.name || "pasted image"} · ${bytes(file.size)}`;
    this.limited(false);
    const drawn = await this.stage.load(file);
    if (this.file !== file) return;
    if (drawn) $("photo-facts").textContent += ` · ${$("photo").naturalWidth} × ${$("photo").naturalHeight}`;
    $("run").disabled = $("every").disabled = false;
    await this.run();
  }

  /** Refuse a body that is too large before it is sent: some browsers show a broken connection instead of the 413. */
  #checkSize() {
    const most = this.info.limits.max_body_bytes;
    if (this.file.size <= most) return;
    throw new Problem({
      title: "The image is over a limit",
      detail: `It has ${bytes(this.file.size)}, this service takes up to ${bytes(most)}.`,
      status: 413,
    });
  }

  async run() {
    clearTimeout(this.settle);
    this.running?.abort();
    this.strip.stop("Cancelled.");
    const control = (this.running = new AbortController());
    const limits = this.form.values();
    this.#writeCurl(); // there may be a key by now
    problem.hide();
    $("busy").hidden = false;
    try {
      this.#checkSize();
      const result = await segment(this.file, this.form.header(), this.include, control.signal);
      if (this.running === control) this.show({ ...result, limits, labels: new Labels(result.answer, this.info.objects) });
    } catch (error) {
      if (this.running === control) this.#failed(error, () => this.run());
    } finally {
      if (this.running === control) {
        this.running = null;
        $("busy").hidden = true;
      }
    }
  }

  show(result) {
    this.stage.show(result.labels, result.answer.image.orientation_applied);
    this.reading.show(result);
    this.strip.mark(result);
  }

  /** Show an error, and remove the masks and figures of an earlier answer. */
  #failed(error, again) {
    problem.show(error, again);
    if (error.name === "AbortError") return;
    this.stage.clear();
    this.reading.fail(error);
    this.strip.mark(null);
  }

  async everyPlan() {
    this.running?.abort();
    this.#writeCurl();
    problem.hide();
    try {
      this.#checkSize();
      await this.strip.run(this.file);
    } catch (error) {
      problem.show(error, () => this.everyPlan());
    }
  }
}

/** Choosing, dropping and pasting all call open(file). */
function takeFiles(open) {
  $("file").addEventListener("change", (event) => {
    if (event.target.files[0]) open(event.target.files[0]);
    event.target.value = ""; // so that choosing the same file again counts as a change
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files[0]) open(event.clipboardData.files[0]);
  });
  const drag = (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", event.type === "dragover");
  };
  for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, drag);
  document.addEventListener("drop", (event) => {
    if (event.dataTransfer?.files[0]) open(event.dataTransfer.files[0]);
  });
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

takeFiles(async (file) => (await app).open(file));
$("copy").addEventListener("click", copyCurl);
$("problem-close").addEventListener("click", () => problem.hide());
start();
