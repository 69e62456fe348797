/** The box that says what went wrong, and offers to try again. */

import { Problem } from "./client.js";
import { askKey } from "./key.js";

const COUNTED_S = 120; // longer waits are told by the clock

const $ = (id) => document.getElementById(id);

export const problem = {
  timer: 0,
  /** It is over: a retry by itself does not happen any more. */
  hide() {
    clearInterval(this.timer);
    $("problem").hidden = true;
    $("problem-title").textContent = "";
  },
  /** The box is out of the way, and a retry by itself still happens. */
  dismiss() {
    $("problem").hidden = true;
  },
  /** Show again what was dismissed and is not over. */
  recall() {
    $("problem").hidden = !$("problem-title").textContent;
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
    const words = known && error.reload ? "Reload the page" : "Try again";
    retry.hidden = !again || !known || !error.temporary;
    retry.onclick = () => {
      this.hide();
      if (error.reload) location.reload();
      else again();
    };
    const wait = known ? error.retryAfter : null;
    const pause = alone && wait === 0 ? 1 : (wait ?? 0); // a retry by itself leaves the service a moment
    const due = Date.now() + pause * 1000;
    const count = () => {
      const left = Math.ceil((due - Date.now()) / 1000);
      retry.disabled = left > 0;
      const when = left > COUNTED_S ? `after ${new Date(due).toLocaleString()}` : `in ${left} s`;
      retry.textContent = left > 0 ? `${words} ${when}` : words;
      if (left > 0) return;
      clearInterval(this.timer);
      if (alone && wait !== null) retry.click();
    };
    $("problem").hidden = false;
    this.timer = setInterval(count, 250);
    count();
  },
};
