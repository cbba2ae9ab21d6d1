/** `node node.mjs SCENARIO JSON`: runs a scenario; what it reports goes to stdout, a line each. */

import * as client from "../../../clients/js/index.js";
import * as scenarios from "./scenarios.js";

const [name, options] = process.argv.slice(2);
const report = (event) => console.log(JSON.stringify(event));
await scenarios[name]({ ...client, ...JSON.parse(options), report });
