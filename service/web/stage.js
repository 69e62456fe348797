/** The photo with the masks and paused areas over it, the probe at the pointer, and the legend. */

import { element, percent, rgb } from "./format.js";

const $ = (id) => document.getElementById(id);

export class Stage {
  /** @param {{name: string, color: number[]}[]} classes */
  constructor(classes) {
    this.classes = classes;
    this.colors = classes.map(({ color }) => color);
    this.labels = null;
    this.only = null;
    this.spot = [0.5, 0.5];
    const [frame, opacity] = [$("frame"), $("opacity")];
    const fade = () => {
      $("overlay").style.opacity = String(opacity.value / 100);
      opacity.style.setProperty("--fill", String(opacity.value / 100));
    };
    opacity.addEventListener("input", fade);
    fade();
    $("show-paused").addEventListener("change", () => this.#paintPaused());
    const follow = (event) => {
      const box = frame.getBoundingClientRect();
      this.probe((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    frame.addEventListener("pointermove", follow);
    frame.addEventListener("pointerdown", follow);
    frame.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.#hideProbe(); });
    frame.addEventListener("blur", () => this.#hideProbe());
    frame.addEventListener("keydown", (event) => this.#steer(event));
    this.clear();
  }

  /** Show a photo without masks. Resolves to true if this browser can draw it. */
  async load(file) {
    this.clear();
    const photo = $("photo");
    if (photo.src) URL.revokeObjectURL(photo.src);
    photo.src = URL.createObjectURL(file);
    photo.alt = file.name ? `The photo ${file.name}` : "The photo";
    const drawn = await photo.decode().then(() => true, () => false);
    $("frame").hidden = photo.hidden = !drawn;
    $("empty").hidden = drawn;
    $("tools").hidden = false;
    this.type = file.type;
    if (drawn) this.#shape(photo.naturalWidth, photo.naturalHeight);
    return drawn;
  }

  #shape(width, height) {
    $("frame").style.setProperty("--ratio", String(width / height));
  }

  /** Remove the masks; the legend then lists all classes. */
  clear() {
    this.labels = null;
    this.only = null;
    const overlay = $("overlay");
    overlay.width = overlay.height = 1;
    $("paused-switch").hidden = true;
    this.#paintPaused();
    $("legend").replaceChildren(...this.classes.map(({ name, color }) => {
      const item = element("li", "entry");
      item.append(swatch(color), element("span", "name", name));
      return item;
    }));
    $("absent").textContent = "";
    $("legend-title").textContent = "Classes";
    $("legend-facts").textContent = "that this bundle tells apart";
    this.#note([]);
    this.#hideProbe();
  }

  /**
   * Show a result's masks over the photo.
   * @param {Labels} labels
   * @param {{orientation_applied: boolean, damaged: boolean, hint: string | null}} image of the answer
   */
  show(labels, image) {
    this.labels = labels;
    this.only = null;
    this.#paint();
    $("paused-switch").hidden = labels.paused === null;
    $("paused-share").textContent = labels.paused === null ? "" : percent(labels.paused.share);
    this.#paintPaused();
    const damage = "Pixels of this file are missing or wrong: the service read it as far as it could.";
    this.#note([this.#compareSizes(image.orientation_applied), image.damaged && damage, image.hint]);
    this.#legend();
  }

  #paint() {
    this.labels.paint($("overlay"), this.colors, { only: this.only });
  }

  #paintPaused() {
    const shown = Boolean(this.labels?.paused) && $("show-paused").checked;
    $("paused").hidden = !shown;
    if (shown) this.labels.paintPaused($("paused"));
  }

  /**
   * Service and browser both turn a photo as its EXIF says. If they disagree, the masks are in the wrong place. Some
   * browsers ignore EXIF in WebP files, and half a turn or a flip does not change the sizes. Returns what to say of it.
   */
  #compareSizes(turned) {
    const { width, height } = this.labels;
    const { naturalWidth: across, naturalHeight: down } = $("photo");
    $("frame").hidden = false;
    $("empty").hidden = true;
    if (!across) this.#shape(width, height);
    const same = across === width && down === height;
    if (!across) return "This browser cannot show the photo: the masks are shown without it.";
    if (same && !(turned && this.type === "image/webp")) return "";
    return same
      ? "The service turned this photo as its EXIF says. If your browser did not, the masks are in the wrong place."
      : `The service read ${width} × ${height} pixels, this browser shows ${across} × ${down}: ` +
        "they disagree about the photo’s orientation, so the masks are in the wrong place.";
  }

  /** Say what there is to say of the photo, a line for each text. */
  #note(texts) {
    $("notes").replaceChildren(...texts.filter(Boolean).map((text) => element("p", "note", text)));
  }

  /** Name the class or object at a point, given as shares of width and height. */
  probe(across, down) {
    if (!this.labels) return;
    const { width, height } = this.labels;
    const x = Math.min(width - 1, Math.max(0, Math.floor(across * width)));
    const y = Math.min(height - 1, Math.max(0, Math.floor(down * height)));
    this.spot = [(x + 0.5) / width, (y + 0.5) / height];
    const segment = this.labels.at(x, y);
    const [probe, pin] = [$("probe"), $("pin")];
    const { objects } = this.labels;
    probe.replaceChildren(
      ...(segment ? [swatch(this.labels.color(segment, this.colors)),
        element("b", "", objects ? `${segment.label} ${segment.id}` : segment.label),
        element("span", "", segment.score.toFixed(2))] : [element("b", "", objects ? "background" : "no class")]),
    );
    for (const node of [probe, pin]) {
      node.hidden = false;
      node.style.left = `${this.spot[0] * 100}%`;
      node.style.top = `${this.spot[1] * 100}%`;
    }
    probe.classList.toggle("leftward", this.spot[0] > 0.6);
    probe.classList.toggle("downward", this.spot[1] < 0.2);
  }

  #hideProbe() {
    $("probe").hidden = $("pin").hidden = true;
  }

  #steer(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !this.labels) return;
    event.preventDefault();
    const reach = event.shiftKey ? 0.1 : 0.02;
    this.probe(this.spot[0] + step[0] * reach, this.spot[1] + step[1] * reach);
  }

  /** One entry per class in the result, by area; pressing one shows only that class. */
  #legend() {
    const pixels = this.labels.width * this.labels.height;
    const present = new Map();
    for (const segment of this.labels.segments) {
      const entry = present.get(segment.class_id) ?? { label: segment.label, area: 0, weighted: 0, count: 0 };
      entry.count += 1;
      entry.area += segment.area;
      entry.weighted += segment.area * segment.score;
      present.set(segment.class_id, entry);
    }
    const rows = [...present].sort(([, a], [, b]) => b.area - a.area).map(([id, entry]) => {
      const button = element("button", "entry");
      button.type = "button";
      button.dataset.classId = String(id);
      button.setAttribute("aria-pressed", "false");
      button.title = `Mean score ${(entry.weighted / entry.area).toFixed(2)}. Press to show only this class.`;
      const count = this.labels.objects ? `${entry.count} · ` : "";
      const share = element("span", "share", count + percent(entry.area / pixels));
      const sign = swatch(this.colors[id]);
      if (this.labels.objects) sign.classList.add("many"); // each object has its own colour
      button.append(sign, element("span", "name", entry.label), share);
      button.style.setProperty("--share", String(entry.area / pixels));
      button.style.setProperty("--color", rgb(this.colors[id] ?? [128, 128, 128]));
      button.addEventListener("click", () => this.#single(id));
      const item = element("li");
      item.append(button);
      return item;
    });
    $("legend").replaceChildren(...rows);
    if (!this.labels.asked) {
      $("legend").replaceChildren();
      $("legend-title").textContent = "No masks";
      $("legend-facts").textContent = "were asked for";
      $("absent").textContent = "";
      return;
    }
    const absent = this.classes.filter((_, id) => !present.has(id)).map(({ name }) => name);
    const { length } = this.labels.segments;
    $("legend-title").textContent = this.labels.objects ? "Objects" : "Classes";
    $("legend-facts").textContent = this.labels.objects ? `${length} found`
      : `${present.size} of ${this.classes.length} found`;
    $("absent").textContent = absent.length ? `Not found: ${absent.join(", ")}.` : "";
  }

  #single(id) {
    this.only = this.only === id ? null : id;
    for (const button of $("legend").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(this.only === Number(button.dataset.classId)));
    }
    this.#paint();
  }
}

function swatch(color = [128, 128, 128]) {
  const node = element("i", "swatch");
  node.style.backgroundColor = rgb(color);
  return node;
}
