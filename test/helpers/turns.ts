/** Counts the event loop's turns until the returned function is called, which tells them. */
export function countTurns(): () => number {
  let turns = 0;
  const turn = () => {
    turns++;
    next = setImmediate(turn);
  };
  let next = setImmediate(turn);
  return () => {
    clearImmediate(next);
    return turns;
  };
}
