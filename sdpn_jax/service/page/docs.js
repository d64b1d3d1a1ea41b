// Renders openapi.json: each operation with its fields, its answers, and a line for curl.

import { ask } from "./api.js";
import { byId, make, table } from "./elements.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

async function start() {
  const [api, { token }] = await Promise.all([ask("GET", "/openapi.json"), ask("GET", "/health")]);
  byId("description").textContent = api.info.description ?? "";
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => operationOf(api, path, method, item, token)),
  );
  byId("contents").replaceChildren(...operations.map(linkTo));
  byId("operations").replaceChildren(...operations.map((operation) => cardOf(api, operation)));
}

/** What this page uses of an operation: its names and addresses, texts, fields, answers. */
function operationOf(api, path, method, item, serviceHasToken) {
  const described = item[method];
  const content = Object.entries(resolved(api, described.requestBody)?.content ?? {});
  const [type, body] = content[0] ?? [null, {}];
  const parameters = [...(item.parameters ?? []), ...(described.parameters ?? [])].map((one) => resolved(api, one));
  return {
    method: method.toUpperCase(),
    path,
    id: `${method}${path.replace(/\W+/g, "-")}`,
    texts: [described.summary, described.description].filter(Boolean),
    parameters,
    fields: fieldsOf(api, body.schema),
    type,
    responses: Object.entries(described.responses ?? {}).map(([status, one]) => [status, resolved(api, one)]),
    needsToken: serviceHasToken && described.security?.length !== 0,
  };
}

/** What a {"$ref": "#/components/..."} stands for. */
function resolved(api, part) {
  if (!part?.$ref) return part;
  return part.$ref
    .slice(2)
    .split("/")
    .reduce((place, name) => place[name], api);
}

/** Rows {name, type, required, description} of an object's schema; objects inside it follow it, as outer.inner. */
function fieldsOf(api, schema, prefix = "") {
  const { properties = {}, required = [] } = resolved(api, schema) ?? {};
  return Object.entries(properties).flatMap(([name, part]) => {
    const field = resolved(api, part);
    const item = resolved(api, field.items);
    const isList = item?.properties !== undefined;
    const row = {
      name: prefix + name,
      type: typeOf(api, field),
      required: required.includes(name),
      description: [part.description ?? field.description, valuesOf(field)].filter(Boolean).join(" "),
    };
    return [row, ...fieldsOf(api, isList ? item : field, `${prefix}${name}${isList ? "[]" : ""}.`)];
  });
}

function typeOf(api, schema) {
  const { type, format, contentMediaType, items, anyOf, oneOf } = schema ?? {};
  if (anyOf ?? oneOf) return (anyOf ?? oneOf).map((one) => typeOf(api, resolved(api, one))).join(" or ");
  if (format === "binary" || contentMediaType) return "file";
  if (type === "array") return `list of ${typeOf(api, resolved(api, items))}`;
  return [type].flat().filter(Boolean).join(" or ") || "anything";
}

function valuesOf({ enum: values, default: usual, minimum, maximum }) {
  const parts = [];
  if (values) parts.push(`One of ${values.map((value) => JSON.stringify(value)).join(", ")}.`);
  if (minimum !== undefined) parts.push(`At least ${minimum}.`);
  if (maximum !== undefined) parts.push(`At most ${maximum}.`);
  if (usual !== undefined) parts.push(`Otherwise ${JSON.stringify(usual)}.`);
  return parts.join(" ");
}

function linkTo({ method, path, id, texts }) {
  const link = make("a", { href: `#${id}` }, `${method} ${path}`);
  return make("li", {}, link, texts.length ? `: ${texts[0]}` : "");
}

function cardOf(api, operation) {
  const { method, path, id, texts, parameters, fields, type, responses } = operation;
  const isGood = ([status]) => status.startsWith("2");
  const title = make("h3", { id }, make("span", { className: "method" }, method), path);
  const parts = [title, ...texts.map((text) => make("p", {}, text))];
  if (parameters.length) parts.push(heading("Parameters"), scrolled("Parameters", parametersOf(api, parameters)));
  if (fields.length) parts.push(heading(`Fields (${type})`), scrolled("Fields", tableOf(fields)));
  parts.push(heading("With curl"), block("With curl", curlOf(operation)));
  parts.push(heading("Answer"));
  parts.push(...responses.filter(isGood).flatMap(([status, response]) => answerOf(api, status, response)));
  parts.push(refusalsOf(responses.filter((response) => !isGood(response))));
  return make("section", { className: "card operation", "aria-labelledby": id }, ...parts);
}

const heading = (text) => make("h4", {}, text);

/** Something wide in a box of its own, which the keyboard can scroll too. */
const scrolled = (label, ...content) =>
  make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": label }, ...content);

const block = (label, text) => make("pre", { tabIndex: 0, role: "group", "aria-label": label }, text);

/** A name that may be broken after its dots. */
const dotted = (name) =>
  make("code", {}, ...name.split(".").flatMap((part, i) => (i ? [".", make("wbr"), part] : [part])));

const tableOf = (rows) =>
  table(
    ["Name", "What", "Needed", "Meaning"],
    rows.map((row) => [dotted(row.name), row.type, row.required ? "yes" : "no", row.description]),
  );

const answersOf = (rows) =>
  table(
    ["Name", "What", "Meaning"],
    rows.map((row) => [dotted(row.name), row.type, row.description]),
  );

function parametersOf(api, parameters) {
  return tableOf(
    parameters.map((one) => {
      const schema = resolved(api, one.schema) ?? {};
      const description = [one.description, valuesOf(schema), `In the ${one.in}.`].filter(Boolean).join(" ");
      return { name: one.name, type: typeOf(api, schema), required: one.required === true, description };
    }),
  );
}

function answerOf(api, status, response) {
  const { schema, example, examples } = response.content?.["application/json"] ?? {};
  const shown = example ?? Object.values(examples ?? {})[0]?.value ?? resolved(api, schema)?.example;
  const fields = fieldsOf(api, schema);
  const parts = [make("p", {}, make("code", {}, status), ` ${response.description ?? ""}`)];
  if (fields.length) parts.push(scrolled(`Answer ${status}`, answersOf(fields)));
  if (shown !== undefined) parts.push(block(`Example of ${status}`, JSON.stringify(shown, null, 2)));
  return parts;
}

function refusalsOf(responses) {
  const rows = responses.map(([status, response]) => [make("code", {}, status), response.description ?? ""]);
  return make("details", {}, make("summary", {}, "Refusals"), table(["Status", "Why"], rows));
}

const quoted = (text) => `'${text.replace(/'/g, "'\\''")}'`;

function curlOf({ method, path, parameters, fields, needsToken }) {
  const filled = path.replace(/\{(\w+)[^}]*\}/g, (_, name) => name.toUpperCase());
  const needed = parameters.filter((one) => one.in === "query" && one.required).map((one) => `${one.name}=VALUE`);
  const address = `${location.origin}${filled}${needed.length ? `?${needed.join("&")}` : ""}`;
  const words = ["curl"];
  if (method === "DELETE") words.push("-X DELETE");
  if (needsToken) words.push('-H "Authorization: Bearer TOKEN"');
  for (const { name, type, required } of fields) {
    const value = type.includes("file") ? "@RECORDING.wav" : name.toUpperCase();
    if (required) words.push(`-F ${quoted(`${name}=${value}`)}`);
  }
  return [...words, quoted(address)].join(" ");
}

start().catch((error) => {
  byId("trouble").textContent = `${error.message} If it asks for a token, give it on the page for people first.`;
});
