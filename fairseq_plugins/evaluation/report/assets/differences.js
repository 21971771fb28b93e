// Words that differ between two texts.

// Two lists of booleans: the words of two lines in a longest common subsequence.
function findCommon(ours, theirs) {
  const lengths = Array.from({ length: ours.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = ours.length - 1; i >= 0; i--) {
    for (let j = theirs.length - 1; j >= 0; j--) {
      lengths[i][j] = ours[i] === theirs[j] ? lengths[i + 1][j + 1] + 1
        : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const inOurs = ours.map(() => false), inTheirs = theirs.map(() => false);
  for (let i = 0, j = 0; i < ours.length && j < theirs.length;) {
    if (ours[i] === theirs[j]) { inOurs[i++] = true; inTheirs[j++] = true; }
    else if (lengths[i + 1][j] >= lengths[i][j + 1]) i++;
    else j++;
  }
  return [inOurs, inTheirs];
}

// Words and punctuation marks, each with the space before it.
const words = (text) => text.match(/\s*(?:[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*|[^\s\p{L}\p{N}])/gu) || [];
const bare = (parts) => parts.map((part) => part.trim());

// A text in which words that `other` has not are marked: green if the reference has them,
// red if it has not. Without a reference there is one kind of mark.
function markDifferences(text, other, reference) {
  const ours = words(text);
  const same = findCommon(bare(ours), bare(words(other)))[0];
  const inGold = reference ? findCommon(bare(ours), bare(words(reference)))[0] : [];
  const parts = [];
  for (let i = 0; i < ours.length; i++) {
    if (same[i]) { parts.push(ours[i]); continue; }
    const space = ours[i].match(/^\s*/)[0], right = inGold[i];
    let run = ours[i].slice(space.length);
    while (i + 1 < ours.length && !same[i + 1] && inGold[i + 1] === right) run += ours[++i];
    parts.push(space, h("mark", {
      class: reference && (right ? "in-gold" : "not-gold"),
      title: reference && (right ? "also in the reference" : "not in the reference at this place"),
    }, run));
  }
  return parts.length ? parts : h("em", { class: "note" }, "(empty)");
}
