// Copy buttons on code, and a tab stop on everything that scrolls sideways or down (and on nothing else).
const scrolls = 'pre, .cell_output, .cell_output > div, .table-wrapper, div.math, .sidebar-scroll, .toc-scroll, .highlight';
function stops() {
  for (const box of document.querySelectorAll(scrolls)) {
    const inside = box.querySelector('a[href], button, input, summary, [tabindex="0"]');
    const more = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (more && !inside) {
      box.tabIndex = 0; box.dataset.stop = '';
      if (!box.matches('pre')) { box.setAttribute('role', 'group'); box.setAttribute('aria-label', 'Scrolls'); }
    } else if ('stop' in box.dataset && !more) { box.removeAttribute('tabindex'); delete box.dataset.stop; }
  }
}
function copyButtons() {
  for (const block of document.querySelectorAll('article div[class*="highlight-"]')) {
    const pre = block.querySelector('pre');
    if (!pre || block.closest('.cell_output') || !navigator.clipboard) continue;
    const button = Object.assign(document.createElement('button'), {className: 'copy', type: 'button', textContent: 'Copy'});
    button.setAttribute('aria-label', 'Copy this code');
    button.onclick = async () => {
      await navigator.clipboard.writeText(pre.textContent.trimEnd());
      button.textContent = 'Copied'; setTimeout(() => button.textContent = 'Copy', 1500);
    };
    block.append(button);
  }
}
copyButtons(); stops();
addEventListener('load', stops); addEventListener('resize', stops); document.addEventListener('toggle', stops, true);

// The playground's frame is as high as what it shows.
addEventListener('message', e => {
  for (const frame of document.querySelectorAll('.stage iframe'))
    if (e.source === frame.contentWindow && e.data.height > 200) frame.style.height = `${Math.ceil(e.data.height) + 4}px`;
});
// Versions that are kept beside this one: {name: its pages}, from versions.js; the same page where that version has it.
const kept = window.libkdVersions || {}, root = document.documentElement.dataset.content_root;
const folder = new URL(root, location.href), here = location.href.slice(folder.href.length).split(/[?#]/)[0] || 'index.html';
const mine = folder.pathname.split('/').filter(Boolean).pop();
if (Object.keys(kept).length > 1 && mine in kept) {
  const nav = Object.assign(document.createElement('nav'), {className: 'versions'}), label = document.createElement('label'), select = document.createElement('select');
  nav.setAttribute('aria-label', 'Versions');
  for (const name in kept) select.append(new Option(name, name, name === mine, name === mine));
  select.onchange = () => location.href = new URL(`../${select.value}/${kept[select.value].includes(here) ? here : 'index.html'}`, folder);
  label.append('Version ', select); nav.append(label);
  document.querySelector('.sidebar-brand').after(nav);
  if (mine !== 'latest') {
    const link = Object.assign(document.createElement('a'), {href: new URL(`../latest/${kept.latest.includes(here) ? here : 'index.html'}`, folder), textContent: 'the latest one'});
    const note = Object.assign(document.createElement('p'), {className: 'older'});
    note.append(`These pages are of version ${mine}; see `, link, '.');
    document.querySelector('article').prepend(note);
  }
}
