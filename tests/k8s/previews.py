"""Two previews: one with an HMR socket, and one that tries to get out."""

from __future__ import annotations

from typing import Any, Final

APP: Final[dict[str, Any]] = {
    "packageJson": {"type": "module", "devDependencies": {"vite": "^8"}},
    "files": [
        {"path": "index.html", "content": "<h1>Hi</h1><script type=module src=/main.js></script>"},
        {"path": "main.js", "content": "import.meta.hot.accept(); export const shade = 'red'"},
    ],
}

#: Answers `?host=&port=` with what a TCP connection from inside the preview's pod comes to, and
#: `?path=` with whether there is such a file.
_PROBE: Final = """
const net = require("node:net"), http = require("node:http"), fs = require("node:fs");
const tried = (host, port) => new Promise((done) => {
  const socket = net.connect({host, port: Number(port), timeout: 3000});
  socket.on("connect", () => { socket.destroy(); done("open"); });
  socket.on("timeout", () => { socket.destroy(); done("no answer"); });
  socket.on("error", (error) => done(error.code));
});
const [host, port] = process.argv.slice(2);
http.createServer(async (asked, answer) => {
  const query = new URL(asked.url, "http://a").searchParams;
  answer.end(query.has("path") ? (fs.existsSync(query.get("path")) ? "there" : "not there")
    : query.has("host") ? await tried(query.get("host"), query.get("port"))
    : JSON.stringify(process.env));
}).listen(Number(port), host);
"""

PROBE: Final[dict[str, Any]] = {
    "files": [{"path": "probe.cjs", "content": _PROBE}],
    "command": ["node", "probe.cjs", "{host}", "{port}"],
}
