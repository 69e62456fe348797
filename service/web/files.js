/** How photos come to the page. */

import { Problem } from "./client.js";
import { problem } from "./problem.js";

const $ = (id) => document.getElementById(id);

const noFile = () => new Problem({
  title: "What was dropped is no file",
  detail: "Save the image and drop its file, or copy the image and paste it.",
  temporary: false,
});

/**
 * Choosing, dropping and pasting all call open.
 * @param {(file: File, of: number) => void} open gets the first file, and how many came
 */
export function takeFiles(open) {
  const take = (files) => { if (files?.length) open(files[0], files.length); };
  $("file").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // so that choosing the same file again counts as a change
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files));
  const drag = (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", event.type === "dragover");
  };
  for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, drag);
  document.addEventListener("drop", (event) => {
    take(event.dataTransfer?.files);
    const { ready } = document.documentElement.dataset; // until then the box is for what the page waits for
    if (ready && !event.dataTransfer?.files.length) problem.show(noFile());
  });
}
