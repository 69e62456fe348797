/** The API's page, made from /openapi.json: what each path takes and returns. Nothing is fetched from elsewhere. */

function node(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const code = (text) => node("code", {}, text);
const example = (value) => node("pre", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2));

function table(title, rows) {
  if (!rows.length) return null;
  const cells = ([head, ...rest]) => node("tr", {}, node("th", { scope: "row" }, head), ...rest.map((cell) => node("td", {}, ...cell)));
  return node("div", {}, node("h3", {}, title), node("table", {}, node("tbody", {}, ...rows.map(cells))));
}

/** A schema with its references resolved. */
function resolved(schema, all) {
  if (Array.isArray(schema)) return schema.map((item) => resolved(item, all));
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref) return resolved(all[schema.$ref.split("/").pop()], all);
  return Object.fromEntries(Object.entries(schema).filter(([key]) => key !== "title").map(([key, value]) => [key, resolved(value, all)]));
}

const types = (content = {}) => Object.keys(content).join(", ");

function answer([status, response], all) {
  const parts = [node("p", {}, response.description, " ", code(types(response.content)))];
  const fields = Object.entries(response.headers ?? {}).map(([name, field]) => [code(name), [field.description ?? "", " ", code(field.example ?? "")]]);
  if (status < 300 && fields.length) parts.push(table("Header fields", fields));
  for (const body of Object.values(response.content ?? {})) {
    if (body.example) parts.push(example(body.example));
    else if (status < 300 && body.schema?.$ref) parts.push(node("details", {}, node("summary", {}, "schema"), example(resolved(body.schema, all))));
  }
  return [code(status), parts];
}

function operation(path, method, described, all) {
  const [first, ...more] = (described.description ?? described.summary ?? "").split("\n\n");
  const title = node("summary", {}, code(`${method.toUpperCase()} ${path}`), ` ${first}`);
  const words = more.map((part) => node("p", {}, part));
  const parameters = (described.parameters ?? [])
    .map((parameter) => [code(parameter.name), [`${parameter.in}. ${parameter.description ?? ""} `, code(parameter.example ?? "")]]);
  const body = described.requestBody ? [[code("body"), [types(described.requestBody.content)]]] : [];
  const answers = Object.entries(described.responses).map((entry) => answer(entry, all));
  return node("details", { open: path === "/segment" }, title, ...words, table("Request", [...body, ...parameters]), table("Answers", answers));
}

const api = await (await fetch("openapi.json")).json();
document.getElementById("about").textContent = `${api.info.summary} Version ${api.info.version}.`;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, described] of Object.entries(methods)) {
    document.getElementById("operations").append(operation(path, method, described, api.components.schemas));
  }
}
