// The threshold slider acts in the browser at once. It starts at the stored threshold, rounded: that position means the
// exact one.
(stored, shown) => {
  let threshold = stored;
  window.kglDecide = (value) => {
    if (value !== undefined) threshold = value === shown ? stored : value;
    document.documentElement.style.setProperty('--threshold', threshold);
    for (const card of document.querySelectorAll('.card[data-score]'))
      card.dataset.decision = Number(card.dataset.score) >= threshold ? 'defective' : 'good';
  };
  window.kglDecide();
}
