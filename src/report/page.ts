import type { Chart } from './charts.js';
import { drawSvgs } from './draw.js';

export interface Table {
  caption: string;
  header: string[];
  /** Cells as they are shown. Numbers stand to the right. */
  rows: string[][];
  /** Which cells are the best of their column: [row, column]. */
  best?: [number, number][];
}

export interface Section {
  heading: string;
  /** Paragraphs. */
  text?: string[];
  charts?: Chart[];
  tables?: Table[];
  /** What makes the section's numbers again, folded up. */
  commands?: string[];
  /** Folded up itself, where there is much of it. */
  folded?: boolean;
}

export interface Page {
  title: string;
  /** One paragraph on what was measured. */
  summary: string;
  facts: [name: string, value: string][];
  sections: Section[];
  /** The report's JSON, kept in the page. */
  data: unknown;
}

/** One HTML file with everything in it: drawings, data, style and the few lines that show values. It asks for nothing else. */
export async function renderPage(page: Page): Promise<string> {
  const specs = page.sections.flatMap(({ charts = [] }) => charts.flatMap(({ wide, narrow }) => [wide, narrow]));
  const drawings = (await drawSvgs(specs)).values();
  const sections = page.sections.map((section) => renderSection(section, drawings));
  const facts = page.facts.map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`).join('');
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(page.title)}</title>
<link rel="icon" href="data:,">
<style>${style}</style>
</head>
<body>
<main>
<h1>${escapeHtml(page.title)}</h1>
<p class="summary">${escapeHtml(page.summary)}</p>
<dl>${facts}</dl>
${sections.join('\n')}
</main>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">${json(page.data)}</script>
<script>${script}</script>
</body>
</html>
`;
}

/** @param drawings the next ones are this section's */
function renderSection(section: Section, drawings: Iterator<string>): string {
  const { heading, text = [], charts = [], tables = [], commands = [], folded } = section;
  const parts: string[] = text.map((paragraph) => `<p>${escapeHtml(paragraph)}</p>`);
  for (const { title, note } of charts) {
    const said = note === undefined ? '' : `<p class="note">${escapeHtml(note)}</p>`;
    const [large, small] = [drawings.next().value as string, drawings.next().value as string];
    parts.push(
      `<figure><figcaption>${escapeHtml(title)}</figcaption><div class="wide">${withTips(large)}</div>` +
        `<div class="narrow" aria-hidden="true">${withTips(small)}</div>${said}</figure>`,
    );
  }
  for (const table of tables) parts.push(renderTable(table));
  if (commands.length > 0) {
    const lines = escapeHtml(commands.join('\n'));
    parts.push(
      `<details class="commands"><summary>Commands that make these numbers again</summary><pre>${lines}</pre></details>`,
    );
  }
  const body = parts.join('\n');
  return folded
    ? `<section><details><summary><h2>${escapeHtml(heading)}</h2></summary>${body}</details></section>`
    : `<section><h2>${escapeHtml(heading)}</h2>${body}</section>`;
}

function renderTable({ caption, header, rows, best = [] }: Table): string {
  const isNumber = header.map(
    (_, i) => rows.length > 0 && rows.every((row) => /^[-+]?[\d.,]+|^$|^–$/.test(row[i] ?? '')),
  );
  const bold = new Set(best.map(([row, column]) => `${row},${column}`));
  const cell = (tag: string, text: string, column: number, extra = '') =>
    `<${tag}${isNumber[column] ? ' class="number"' : ''}${extra}>${text}</${tag}>`;
  const head = header.map((title, i) => cell('th', escapeHtml(title), i, ' scope="col"')).join('');
  const body = rows.map((row, r) => {
    const cells = row.map((text, c) =>
      cell('td', bold.has(`${r},${c}`) ? `<b>${escapeHtml(text)}</b>` : escapeHtml(text), c),
    );
    return `<tr>${cells.join('')}</tr>`;
  });
  return (
    `<div class="table"><table><caption>${escapeHtml(caption)}</caption><thead><tr>${head}</tr></thead>` +
    `<tbody>${body.join('')}</tbody></table></div>`
  );
}

/** Marks that say something get it as a native title as well, for pages without scripts. */
function withTips(svg: string): string {
  return svg
    .replace(/^<\?xml[^>]*\?>/, '')
    .replace(/<path aria-label="([^"]*)"([^>]*?)(?:\/>|><\/path>)/g, (_all, label: string, rest: string) => {
      const point = rest.includes('"point"') ? ' data-point="1"' : '';
      return `<path aria-label="${label}" data-tip="${label}"${point}${rest}><title>${label}</title></path>`;
    });
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

/** JSON that cannot end its script element. */
function json(value: unknown): string {
  return JSON.stringify(value)
    .replace(/</g, '\\u003c')
    .replace(/\u2028/g, '\\u2028')
    .replace(/\u2029/g, '\\u2029');
}

const style = `
:root { --text: #1c1e21; --soft: #5c6269; --page: #fff; --line: #d9dce0; --tip: #1c1e21; --tip-text: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #a2a8b0; --page: #15171a; --line: #34383d; --tip: #e6e8eb; --tip-text: #15171a }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 860px; margin: 0 auto; padding: 24px 16px 64px }
h1 { font-size: 1.6em; line-height: 1.25; margin: 0 0 .4em }
h2 { font-size: 1.2em; margin: 2.2em 0 .4em; display: inline-block }
section { border-top: 1px solid var(--line); margin-top: 28px }
section h2 { margin-top: 18px }
.summary { font-size: 1.05em }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: .9em }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 20px 0 }
figcaption, caption { text-align: left; font-weight: 600; margin-bottom: 6px; font-size: .95em }
caption { white-space: nowrap }
.note { margin: 4px 0 0; color: var(--soft); font-size: .85em }
svg { max-width: 100%; height: auto; overflow: visible }
[data-tip] { cursor: pointer }
.narrow { display: none }
.table { overflow-x: auto; margin: 18px 0 }
table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
th { color: var(--soft); font-weight: 600 }
.number { text-align: right }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--page) }
pre { overflow-x: auto; font-size: .8em; line-height: 1.6; padding: 10px 12px; border: 1px solid var(--line); border-radius: 6px }
summary { cursor: pointer }
.commands summary { color: var(--soft); font-size: .9em }
#tip { position: absolute; z-index: 1; max-width: 320px; padding: 5px 9px; border-radius: 5px; background: var(--tip);
  color: var(--tip-text); font-size: .85em; line-height: 1.35; pointer-events: none; white-space: pre-line }
@media (max-width: 640px) { .wide { display: none } .narrow { display: block } body { font-size: 15px } caption { white-space: normal; min-width: 60vw } dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: 6px } }
@media print {
  :root { --text: #000; --soft: #444; --page: #fff; --line: #bbb }
  .wide { display: block } .narrow, #tip { display: none }
  figure, tr { break-inside: avoid } .table { overflow: visible } pre { white-space: pre-wrap } main { max-width: none; padding: 0 }
}
`;

const script = `
(() => {
  const tip = document.getElementById('tip');
  const hide = () => { tip.hidden = true; };
  const show = (event) => {
    const mark = event.target.closest && event.target.closest('[data-tip]');
    if (!mark) return hide();
    const box = mark.getBoundingClientRect();
    // Marks that lie on one another are told together.
    const near = [...mark.closest('svg').querySelectorAll('[data-tip]')].filter((other) => {
      const b = other.getBoundingClientRect();
      const [dx, dy] = [b.left + b.width / 2 - box.left - box.width / 2, b.top + b.height / 2 - box.top - box.height / 2];
      return other === mark || (mark.dataset.point && Math.hypot(dx, dy) < 10);
    });
    tip.textContent = near.map((other) => other.dataset.tip).join('\\n');
    tip.hidden = false;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = left + scrollX + 'px';
    tip.style.top = (above > 4 ? above : box.bottom + 8) + scrollY + 'px';
  };
  addEventListener('pointerover', show);
  addEventListener('pointerdown', show);
  for (const title of document.querySelectorAll('svg title')) title.remove();
})();
`;
