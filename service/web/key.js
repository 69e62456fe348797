/** The API key: requested after a 401, stored for this tab only, sent in a header field. */

const $ = (id) => document.getElementById(id);
const NAME = "fathom-api-key";

/** The result of `use`; null if the browser stores nothing for this page. The key then lasts until a reload. */
function stored(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

let key = stored((storage) => storage.getItem(NAME)) ?? "";
let again = null; // the retry that waits for a key
let before = null; // the element that had the focus when the form appeared

function keep(value) {
  key = value;
  stored((storage) => (value ? storage.setItem(NAME, value) : storage.removeItem(NAME)));
}

export const hasKey = () => key !== "";

/** A link cannot send a key: its address would answer 401. */
const guarded = () => { document.querySelector('nav a[href="plans"]').hidden = true; };
if (key) guarded();

/**
 * The key's header field, if there is a key. It has the key's UTF-8 bytes, as a shell sends them; fetch takes one
 * character per byte.
 */
export function keyFields() {
  if (!key) return {};
  return { "X-API-Key": Array.from(new TextEncoder().encode(key), (byte) => String.fromCharCode(byte)).join("") };
}

/**
 * Show the form. A key that was sent is forgotten, and the form says why it was refused.
 * @param {Problem} problem of the refusal
 * @param {() => Promise<void>} retry what to do with the new key; calls this function again if that is refused
 */
export function askKey(problem, retry) {
  const [form, field, active] = [$("key"), $("key-field"), document.activeElement];
  const appears = form.hidden;
  if (appears) before = active === document.body ? $("file") : active;
  $("key-error").textContent = key ? problem.detail || problem.title : "";
  field.setAttribute("aria-invalid", String(hasKey()));
  keep("");
  guarded();
  again = retry;
  form.hidden = false;
  if (!appears && !form.contains(active)) return; // the user is busy elsewhere on the page
  field.focus();
  field.select();
}

$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!again) return; // a key is being tried
  const retry = again;
  again = null;
  keep($("key-field").value);
  $("key-error").textContent = "";
  await retry();
  if (again) return; // refused
  if ($("key").contains(document.activeElement)) before.focus();
  $("key").hidden = true;
  $("key").reset();
});
