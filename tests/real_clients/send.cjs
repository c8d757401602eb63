// Uploads one file under several names: `node send.cjs CLIENT URL FILE NAME…` prints the answers as JSON.
"use strict";

const fs = require("node:fs");
const http = require("node:http");

const [client, url, file, ...names] = process.argv.slice(2);
const content = fs.readFileSync(file);

function form(name) {
  const made = new FormData();
  made.append("images[]", new Blob([content], { type: "image/png" }), name);
  return made;
}

function formOfPackage(name) {
  const FormDataPackage = require("form-data");
  const made = new FormDataPackage();
  made.append("images[]", content, { filename: name, contentType: "image/png" });
  return made;
}

const clients = {
  // node's own fetch, which is undici.
  async fetch(name) {
    const answer = await fetch(url, { method: "POST", body: form(name) });
    return { status: answer.status, body: await answer.text() };
  },
  async axios_with_form_data_package(name) {
    const axios = require("axios");
    const made = formOfPackage(name);
    const answer = await axios.post(url, made, { headers: made.getHeaders(), validateStatus: null, proxy: false });
    return { status: answer.status, body: JSON.stringify(answer.data) };
  },
  // axios writes the body itself when it is given the FormData of the platform.
  async axios_with_own_form(name) {
    const axios = require("axios");
    const answer = await axios.post(url, form(name), { validateStatus: null, proxy: false });
    return { status: answer.status, body: JSON.stringify(answer.data) };
  },
  // In chunks: nobody said a length.
  form_data_package_piped(name) {
    const made = formOfPackage(name);
    return new Promise((resolve, reject) => {
      const request = http.request(url, { method: "POST", headers: made.getHeaders() }, (answer) => {
        let body = "";
        answer.on("data", (piece) => (body += piece));
        answer.on("end", () => resolve({ status: answer.statusCode, body }));
      });
      request.on("error", reject);
      made.pipe(request);
    });
  },
};

(async () => {
  const answers = [];
  for (const name of names) answers.push(await clients[client](name));
  console.log(JSON.stringify(answers));
})();
