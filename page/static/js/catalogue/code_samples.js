// A request as code that can be pasted: curl, Python with OpenAI's SDK, JavaScript. Pure texts.

/** What comes in place of a key, which no sample contains. */
const KEY = "EASEL_API_KEY";

/** A text in single quotes for a POSIX shell. */
export function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON value as a Python literal. */
export function pythonLiteral(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonLiteral(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

const SDK_FIELDS = new Set(["model", "prompt", "n", "size", "quality", "response_format", "background"]);

/** `{curl, python, javascript}` for a request `body` to Easel at `root`; `isEdit`: it changes photo.png. */
export function codeSamples(root, body, isEdit) {
  return isEdit ? editSamples(root, body) : drawingSamples(root, body);
}

function drawingSamples(root, body) {
  const json = JSON.stringify(body, null, 2);
  return {
    curl: [
      `curl ${shellQuoted(`${root}/v1/images/generations`)} \\`,
      `  -H "Authorization: Bearer $${KEY}" \\`,
      `  -H 'Content-Type: application/json' \\`,
      `  -d ${shellQuoted(json)}`,
    ].join("\n"),
    python: python(root, "generate", Object.entries(body), []),
    javascript: [
      `const response = await fetch(${JSON.stringify(`${root}/v1/images/generations`)}, {`,
      `  method: "POST",`,
      `  headers: { Authorization: \`Bearer \${process.env.${KEY}}\`, "Content-Type": "application/json" },`,
      `  body: JSON.stringify(${json.replaceAll("\n", "\n  ")}),`,
      `});`,
      ...javascriptEnd(),
    ].join("\n"),
  };
}

function editSamples(root, body) {
  const fields = Object.entries(body);
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return {
    curl: [
      `curl ${shellQuoted(`${root}/v1/images/edits`)} \\`,
      `  -H "Authorization: Bearer $${KEY}" \\`,
      `  -F image=@photo.png \\`,
      ...fields.map(([name, value], i) => `  --form-string ${shellQuoted(`${name}=${text(value)}`)}${i < fields.length - 1 ? " \\" : ""}`),
    ].join("\n"),
    python: python(root, "edit", fields, [`image=open("photo.png", "rb")`]),
    javascript: [
      `import { openAsBlob } from "node:fs";`,
      ``,
      `const form = new FormData();`,
      `form.set("image", await openAsBlob("photo.png"), "photo.png");`,
      ...fields.map(([name, value]) => `form.set(${JSON.stringify(name)}, ${JSON.stringify(text(value))});`),
      `const response = await fetch(${JSON.stringify(`${root}/v1/images/edits`)}, {`,
      `  method: "POST",`,
      `  headers: { Authorization: \`Bearer \${process.env.${KEY}}\` },`,
      `  body: form,`,
      `});`,
      ...javascriptEnd(),
    ].join("\n"),
  };
}

function python(root, method, fields, first) {
  const known = fields.filter(([name]) => SDK_FIELDS.has(name));
  const others = Object.fromEntries(fields.filter(([name]) => !SDK_FIELDS.has(name)));
  const lines = [...first, ...known.map(([name, value]) => `${name}=${pythonLiteral(value)}`)];
  if (Object.keys(others).length) lines.push(`extra_body=${pythonLiteral(others)}`);
  return [
    `import os`,
    ``,
    `from openai import OpenAI`,
    ``,
    `client = OpenAI(base_url=${JSON.stringify(`${root}/v1`)}, api_key=os.environ["${KEY}"])`,
    `result = client.images.${method}(`,
    ...lines.map((line) => `    ${line},`),
    `)`,
    `print(result.data[0].url)`,
  ].join("\n");
}

function javascriptEnd() {
  return [
    `const answer = await response.json();`,
    `if (!response.ok) throw new Error(answer.error.message);`,
    `console.log(answer.data[0].url);`,
  ];
}
