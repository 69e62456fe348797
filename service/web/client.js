/** The page's requests. The photo goes to /segment and nowhere else. */

import { hasKey, keyFields } from "./key.js";

/**
 * What went wrong, in the words of the service's problem+json (RFC 9457) if there is one. status: 0 if nothing came
 * back; temporary: whether the same request may succeed later, as far as the status tells; reload: whether only a
 * reload of the page helps.
 */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, retryAfter = null, requestId = "", temporary, reload = false }) {
    super(detail || title);
    temporary ??= status === 0 || status >= 500 || retryAfter !== null;
    Object.assign(this, { title, detail, status, retryAfter, requestId, temporary, reload });
  }
}

const unreachable = () =>
  new Problem({ title: "The service cannot be reached", detail: "No answer came back. Is it still running?" });

/** The seconds of a Retry-After field (delay or date), or null. */
function retrySeconds(field) {
  if (!field) return null;
  const seconds = /^\d+$/.test(field.trim()) ? Number(field) : (Date.parse(field) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

async function problemOf(response) {
  const isProblem = (response.headers.get("Content-Type") ?? "").includes("json");
  const body = isProblem ? await response.json().catch(() => ({})) : {};
  return new Problem({
    title: body.title ?? `${response.status} ${response.statusText}`.trim(),
    detail: body.detail ?? "",
    status: response.status,
    retryAfter: retrySeconds(response.headers.get("Retry-After")),
    requestId: response.headers.get("X-Request-Id") ?? "",
  });
}

/** @throws {Problem} also for a broken connection; an abort stays an AbortError */
async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** @throws {Problem} if the connection breaks, or something else than the service answered, as sign-in pages do */
async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!(error instanceof SyntaxError)) throw unreachable();
    throw new Problem({
      title: "Something else than the service answered",
      detail: "The answer is no JSON. Is there a page to sign in, or a proxy?",
    });
  }
}

/**
 * The plans, heads and limits of the bundle, once the engine is warm and every plan's time is known.
 * @param {string} [preference] value of Task-Preference: the plans are those for it
 * @param {AbortSignal} [signal]
 */
export async function getPlans(preference = "", signal) {
  await call("readyz", { signal });
  const headers = { Accept: "application/json", ...keyFields() };
  if (preference) headers["Task-Preference"] = preference;
  return json(await call("plans", { headers, signal }));
}

/** @throws {Problem} if the file has changed or vanished since it was chosen, or is a folder */
async function checkReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem({
      title: "The photo cannot be read",
      detail: "The file has changed since it was chosen, or this browser may not read it: choose it again.",
      temporary: false,
    });
  }
}

/**
 * What is asked for beside the image.
 * @typedef {{budget: string, preference: string, values: string, include: string[]}} Ask the values of Compute-Budget,
 *   Task-Preference and Value-Range, "" to send none, and what to add to the answer
 */

const path = ({ include }) => (include.length ? `segment?${include.map((word) => `include=${word}`).join("&")}` : "segment");

/** The header fields, without the key. */
function fieldsOf({ budget, preference, values }) {
  const fields = {
    "Content-Type": "application/octet-stream", // browsers go by the file's name, which may be wrong: the bytes decide
    "Compute-Budget": budget,
    "Task-Preference": preference,
    "Value-Range": values,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value));
}

/**
 * Segment one image.
 * @param {File} file sent unchanged
 * @param {Ask} ask
 * @param {AbortSignal} signal
 */
export async function segment(file, ask, signal) {
  const headers = { Accept: "application/json", ...fieldsOf(ask), ...keyFields() };
  const started = performance.now();
  const sent = call(path(ask), { method: "POST", body: file, headers, signal });
  const response = await sent.catch(async (error) => {
    if (error.status === 0) await checkReadable(file); // fetch does not tell a file from a connection
    throw error;
  });
  const answer = await json(response);
  return {
    answer,
    used: response.headers.get("Compute-Used") ?? "",
    requestId: response.headers.get("X-Request-Id") ?? "",
    roundTripMs: performance.now() - started,
  };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The same request for a shell. It prints the answer's header fields and saves the JSON. The key is a variable. */
export function curlLine(file, ask) {
  const parts = ["curl -sS -D - -o segments.json"];
  for (const [name, value] of Object.entries(fieldsOf(ask))) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (hasKey()) parts.push('-H "X-API-Key: $API_KEY"');
  parts.push(`--data-binary ${quoted(`@${file?.name ?? "photo.jpg"}`)}`);
  parts.push(quoted(new URL(path(ask), document.baseURI).href));
  return parts.join(" \\\n  ");
}
