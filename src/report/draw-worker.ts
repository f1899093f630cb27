import { parentPort, workerData } from 'node:worker_threads';
import { drawHere } from './draw.js';

// The thread of draw.ts.
parentPort!.postMessage(await drawHere(workerData));
