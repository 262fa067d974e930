// The keyboard: keys stay inside a view, or the notebook would insert and delete cells; arrows lead from one button to the next.

export function keepKeys(root) { root.addEventListener('keydown', e => { if (e.key !== 'Escape') e.stopPropagation() }) }

export function arrows(event, count, now, columns) {  // where an arrow key leads among `count` places, or -1
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -now, End: count - 1 - now }[event.key]
  if (step === undefined) return -1
  event.preventDefault()
  const to = now + step
  return to < 0 || to >= count ? now : to
}

export function roving(box, buttons, columns, onmove = () => {}) {   // one tab stop for many buttons; `buttons()` are those of now
  box.addEventListener('keydown', e => {
    const nodes = buttons(), now = nodes.indexOf(e.target.closest('button'))
    if (now < 0) return
    const next = arrows(e, nodes.length, now, columns(nodes))
    if (next < 0) return
    for (const b of nodes) b.tabIndex = -1
    nodes[next].tabIndex = 0; nodes[next].focus()
    onmove(nodes[next])
  })
}
