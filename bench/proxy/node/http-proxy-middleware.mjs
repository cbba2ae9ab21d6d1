// http-proxy-middleware on a bare http server, with a keep-alive agent: PORT UPSTREAM_PORT
import http from "node:http";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

// The packages are installed elsewhere, beside the working directory's package.json.
const require = createRequire(resolve(process.cwd(), "package.json"));
const { createProxyMiddleware } = await import(
  pathToFileURL(require.resolve("http-proxy-middleware"))
);

const [port, upstream] = process.argv.slice(2).map(Number);
const target = `http://127.0.0.1:${upstream}`;
const agent = new http.Agent({ keepAlive: true });
const proxy = createProxyMiddleware({ target, agent });
const server = http.createServer((request, response) =>
  proxy(request, response, () => response.writeHead(404).end()),
);
server.on("upgrade", proxy.upgrade);
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
