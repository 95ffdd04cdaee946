// Opens pages in a headless Chromium, narrow and wide, light and dark, and says what is wrong with them.
//
// usage: node check_page.mjs MODULES PAGE.html... [--pictures FOLDER]
//
// MODULES is the folder that scripts/setup-browser.sh installed. Prints one line per fault and ends with 1 if
// there is one: the page is wider than the window, text of a picture lies outside of it or over other text,
// a picture has no text, something was logged or requested.
import { createRequire } from 'node:module';
import { basename, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const WIDTHS = [400, 1400];
const SCHEMES = ['light', 'dark'];

/** Runs in the page: its faults as texts. */
function faultsOfPage() {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    faults.push(`is ${root.scrollWidth} pixels wide in a window of ${root.clientWidth}`);
  }
  for (const part of document.querySelectorAll('body *:not(.scroll *):not(svg *)')) {
    const box = part.getBoundingClientRect();
    if (box.width > 0 && box.right > root.clientWidth + 1) {
      faults.push(`<${part.tagName.toLowerCase()} class="${part.className}"> ends at ${Math.round(box.right)}`);
    }
  }
  const overlap = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
  let shown = 0;
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    if (frame.width === 0) continue;
    shown += 1;
    const name = svg.parentElement.getAttribute('aria-label') ?? 'picture';
    const texts = [...svg.querySelectorAll('text')].filter((t) => t.textContent.trim());
    if (texts.length === 0) faults.push(`${name}: no text`);
    const boxes = texts.map((t) => [t.textContent.trim(), t.getBoundingClientRect()]);
    for (const [text, box] of boxes) {
      if (box.left < frame.left - 0.5 || box.right > frame.right + 0.5 ||
          box.top < frame.top - 0.5 || box.bottom > frame.bottom + 0.5) {
        faults.push(`${name}: '${text}' is cut`);
      }
      if (box.height < 10) faults.push(`${name}: '${text}' is ${box.height.toFixed(1)} pixels high`);
    }
    boxes.forEach(([a, boxA], i) => boxes.slice(i + 1).forEach(([b, boxB]) => {
      if (overlap(boxA, boxB)) faults.push(`${name}: '${a}' lies over '${b}'`);
    }));
  }
  return { faults, shown };
}

async function check(browser, page, width, scheme, pictures) {
  const tab = await browser.newPage();
  const faults = [];
  tab.on('console', (message) => faults.push(`logged: ${message.text()}`));
  tab.on('pageerror', (error) => faults.push(`error: ${error.message}`));
  tab.on('request', (request) => {
    if (!/^(file|data):/.test(request.url())) faults.push(`requests ${request.url()}`);
  });
  await tab.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  await tab.setViewport({ width, height: 900 });
  await tab.goto(pathToFileURL(resolve(page)).href, { waitUntil: 'load' });
  const found = await tab.evaluate(faultsOfPage);
  if (pictures) {
    const name = `${basename(page, '.html')}-${width}-${scheme}.png`;
    await tab.screenshot({ path: join(pictures, name), fullPage: true });
  }
  await tab.close();
  return { faults: [...faults, ...found.faults], shown: found.shown };
}

async function main() {
  const [modules, ...rest] = process.argv.slice(2);
  const flag = rest.indexOf('--pictures');
  const pictures = flag < 0 ? undefined : rest[flag + 1];
  const pages = flag < 0 ? rest : rest.slice(0, flag);
  const require = createRequire(join(resolve(modules), 'package.json'));
  const load = async (name) => (await import(pathToFileURL(require.resolve(name)).href)).default;
  const [chromium, puppeteer] = [await load('@sparticuz/chromium'), await load('puppeteer-core')];
  const browser = await puppeteer.launch({
    args: chromium.args,
    executablePath: await chromium.executablePath(),
    headless: 'shell',
  });
  let bad = 0;
  try {
    for (const page of pages) for (const width of WIDTHS) for (const scheme of SCHEMES) {
      const { faults, shown } = await check(browser, page, width, scheme, pictures);
      for (const fault of faults) console.log(`${basename(page)} at ${width}, ${scheme}: ${fault}`);
      if (faults.length === 0) console.log(`${basename(page)} at ${width}, ${scheme}: ${shown} pictures, no fault`);
      bad += faults.length;
    }
  } finally {
    await browser.close();
  }
  process.exitCode = bad > 0 ? 1 : 0;
}

await main();
