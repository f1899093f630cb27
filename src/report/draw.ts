import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import type { TopLevelSpec } from 'vega-lite';
import { AlpsError } from '../errors.js';
import type { Specification } from './charts.js';

/**
 * The drawings of specifications, as texts of `<svg>` elements. A drawing takes some 50 milliseconds, so a thread of its own makes them.
 */
export async function drawSvgs(specs: readonly Specification[]): Promise<string[]> {
  const path = fileURLToPath(new URL('./draw-worker.js', import.meta.url));
  if (!existsSync(path)) return drawHere(specs); // from the TypeScript sources, as the tests run
  const worker = new Worker(path, { workerData: specs });
  try {
    return await new Promise<string[]>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
      worker.once('exit', (code) => reject(new AlpsError('INTERNAL', `The drawing thread ended with code ${code}`)));
    });
  } finally {
    await worker.terminate();
  }
}

/** The same on the calling thread. */
export async function drawHere(specs: readonly Specification[]): Promise<string[]> {
  const vega = await import('vega');
  const lite = await import('vega-lite');
  const drawn: string[] = [];
  for (const spec of specs) {
    const view = new vega.View(vega.parse(lite.compile(spec as unknown as TopLevelSpec).spec), {
      renderer: 'none',
      logLevel: vega.Error,
    });
    drawn.push(await view.toSVG());
    view.finalize();
  }
  return drawn;
}
