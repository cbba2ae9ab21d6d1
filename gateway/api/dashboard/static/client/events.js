/** Server-sent events, parsed. No I/O. */

/** Events from text as it comes (HTML standard, 9.2.6). */
export class EventParser {
  #open = "";
  #id = "";
  #type = "";
  /** @type {string[]} */
  #data = [];

  /**
   * The events that `text` completes.
   * @param {string} text
   * @returns {import("./index.d.ts").PreviewEvent[]}
   */
  feed(text) {
    const lines = (this.#open + text).split("\n");
    this.#open = /** @type {string} */ (lines.pop());
    const events = [];
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line) this.#take(line);
      else if (this.#data.length) events.push(this.#complete());
      else this.#id = this.#type = "";
    }
    return events;
  }

  /** @param {string} line */
  #take(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "id") this.#id = value;
    else if (name === "event") this.#type = value;
    else if (name === "data") this.#data.push(value);
  }

  #complete() {
    const event = { id: this.#id, type: this.#type || "message", data: JSON.parse(this.#data.join("\n")) };
    this.#id = this.#type = "";
    this.#data = [];
    return /** @type {import("./index.d.ts").PreviewEvent} */ (event);
  }
}
