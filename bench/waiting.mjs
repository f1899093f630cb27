import { readdirSync, readFileSync } from 'node:fs';

/** Nanoseconds for which the threads of this process have run, and have waited for a core; zeros where the system does not tell. */
function scheduled() {
  let [ran, waited] = [0, 0];
  try {
    for (const thread of readdirSync('/proc/self/task')) {
      const [run, wait] = readFileSync(`/proc/self/task/${thread}/schedstat`, 'utf8').split(' ').map(Number);
      ran += run;
      waited += wait;
    }
  } catch {
    // Not Linux, or a thread has ended.
  }
  return { ran, waited };
}

/** Starts a watch: what it returns gives the share of the time since then that this process's threads waited for cores others had. */
export function watchWaiting() {
  const before = scheduled();
  return () => {
    const { ran, waited } = scheduled();
    const [run, wait] = [ran - before.ran, waited - before.waited];
    return run + wait > 0 ? wait / (run + wait) : 0;
  };
}

/** A time is taken as disturbed where its threads waited for more than this share. */
export const disturbed = 0.1;
