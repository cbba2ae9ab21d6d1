// http-proxy-3 as its README shows it, with a keep-alive agent: PORT UPSTREAM_PORT
import http from "node:http";
import { createRequire } from "node:module";
import { resolve } from "node:path";

// The packages are installed elsewhere, beside the working directory's package.json.
const require = createRequire(resolve(process.cwd(), "package.json"));
const { createProxyServer } = require("http-proxy-3");

const [port, upstream] = process.argv.slice(2).map(Number);
const agent = new http.Agent({ keepAlive: true });
const proxy = createProxyServer({ target: `http://127.0.0.1:${upstream}`, ws: true, agent });
const server = http.createServer((request, response) => proxy.web(request, response));
server.on("upgrade", (request, socket, head) => proxy.ws(request, socket, head));
proxy.on("error", (error) => console.error(String(error)));
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
