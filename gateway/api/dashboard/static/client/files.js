/** Files on their way to the API and back. */

/** Files as the API takes them: text as it is, anything else in base64. */
export function encodeFiles(files) {
  if (Array.isArray(files)) return files;
  return Object.entries(files).map(([path, content]) => {
    if (typeof content === "string") return { path, content };
    const bytes = content instanceof ArrayBuffer ? new Uint8Array(content) : content;
    try {
      return { path, content: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes) };
    } catch {
      return { path, content: toBase64(bytes), encoding: "base64" };
    }
  });
}

/** The bytes of a file as the API has it. */
export function decodeFile({ content, encoding }) {
  if (encoding !== "base64") return new TextEncoder().encode(content);
  return Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
}

function toBase64(bytes) {
  let text = "";
  // In parts: there is a limit to the number of arguments.
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(text);
}
