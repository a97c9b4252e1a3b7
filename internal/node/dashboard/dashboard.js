// Shows /api/v1/status. Everything from there is put in as text, never as markup.
"use strict";

const byID = (id) => document.getElementById(id);

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) { n /= 1000; i++; }
  return (i && n < 10 ? n.toFixed(1) : Math.round(n)) + " " + units[i];
}

// fill replaces the rows of a table; with none, it says so in a row of its own.
function fill(id, rows, none) {
  if (!rows.length) rows = [[none]];
  byID(id).replaceChildren(...rows.map((cells) => {
    const tr = document.createElement("tr");
    for (const c of cells) {
      const td = document.createElement("td");
      td.textContent = String(c);
      if (cells.length === 1) td.colSpan = 3;
      tr.append(td);
    }
    return tr;
  }));
}

function show(s) {
  const u = s.usage;
  byID("state").textContent = (s.ready ? "ready" : "not ready") + ", version " + s.version;
  byID("state").className = s.ready ? "" : "bad";
  const parts = { peer: u.from_peers, disk: u.from_disk, upstream: u.from_upstream };
  for (const [name, n] of Object.entries(parts)) {
    document.querySelector("#bar ." + name).style.flexGrow = n;
  }
  fill("usage", [
    ["from " + u.peers + (u.peers === 1 ? " peer" : " peers"), u.from_peers],
    ["from disk", u.from_disk],
    ["from upstream", u.from_upstream],
    ["failed", u.failed],
    ["in all", bytes(u.bytes)],
  ]);
  fill("storage", [
    ["directory", s.store.dir],
    ["artifacts", s.store.files],
    ["size", bytes(s.store.bytes) + (s.store.cap ? " of at most " + bytes(s.store.cap) : "")],
    ["free on the disk", s.store.free < 0 ? "unknown" : bytes(s.store.free)],
    ["found damaged", s.store.damaged],
    ["evicted", s.store.evicted],
  ]);
  fill("sources", s.registries.map((r) => ["operator " + r.key, r.length ? (r.stale ? "stale, " : "") + "signed " + r.time : "not reached yet"])
    .concat(s.upstreams.map((url) => ["upstream", url])), "nowhere: this node is offline");
  fill("swarm", s.swarm.peers.map((p) => [p.key, p.addr, new Date(p.since).toLocaleString()]), "none connected");
  const base = location.origin;
  byID("go").textContent = "GOPROXY=" + base + "/go go build ./...";
  byID("cargo").textContent = "cargo --config 'source.crates-io.replace-with=\"pkgswarm\"' \\\n      --config 'registries.pkgswarm.index=\"sparse+" + base + "/cargo/\"' build";
}

async function refresh() {
  try {
    const r = await fetch("/api/v1/status");
    if (!r.ok) throw new Error(r.status);
    show(await r.json());
  } catch (err) {
    byID("state").textContent = "the node does not answer";
    byID("state").className = "bad";
  }
}

refresh();
setInterval(refresh, 2000);
