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
