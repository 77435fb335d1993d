"use strict";
// "Try it": sends an operation's form, with the token of this page, and shows what came back.
const token = document.getElementById("token");
const granted = new URLSearchParams(location.hash.slice(1)).get("access_token");
if (granted) {
  token.value = granted;
  history.replaceState(null, "", location.pathname); // out of the address, where others could read it
}

function requestOf(form) {
  let path = form.dataset.path;
  const params = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (path.includes(`{${name}}`)) path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (value) params.append(name, value);
  }
  const method = form.dataset.method;
  const headers = token.value && "takesToken" in form.dataset ? { Authorization: `Bearer ${token.value.trim()}` } : {};
  if (method !== "GET") return [path, { method, headers, body: params }];
  return [`${path}${params.toString() && "?"}${params}`, { method, headers }];
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

async function answerTo(form) {
  const [url, options] = requestOf(form);
  const response = await fetch(url, { ...options, credentials: "omit", cache: "no-store" });
  const shown = ["X-Ratelimit-Limit", "X-Ratelimit-Remaining", "Retry-After"].filter((name) => response.headers.has(name));
  const lines = shown.map((name) => `${name}: ${response.headers.get(name)}`);
  return [`${options.method} ${url}`, `${response.status} ${response.statusText}`, ...lines, "", pretty(await response.text())];
}

for (const form of document.querySelectorAll("form[data-path]")) {
  const output = form.querySelector("output"), button = form.querySelector("button");
  button.disabled = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    output.hidden = false;
    output.textContent = "…";
    try {
      output.textContent = (await answerTo(form)).join("\n");
    } catch (error) {
      output.textContent = `No answer: ${error.message}`;
    }
    button.disabled = false;
  });
}
