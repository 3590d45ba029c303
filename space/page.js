// The threshold slider acts in the browser at once. It starts at the stored threshold, rounded: that position means the
// exact one.
// Below it, images from `lookAgain` on are to be looked at again, where the model has such a band.
(stored, shown, lookAgain) => {
  let threshold = stored;
  window.kglDecide = (value) => {
    if (value !== undefined) threshold = value === shown ? stored : value;
    document.documentElement.style.setProperty('--threshold', threshold);
    for (const card of document.querySelectorAll('.card[data-score]')) {
      const score = Number(card.dataset.score);
      const below = lookAgain !== null && score >= lookAgain ? 'look-again' : 'good';
      card.dataset.decision = score >= threshold ? 'defective' : below;
    }
  };
  window.kglDecide();
}
