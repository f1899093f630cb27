// Metrics in Prometheus's text format, from the queue's events.
import { monitorEventLoopDelay } from 'node:perf_hooks';

const bounds = [0.1, 0.5, 1, 5, 15, 60, 300, 1800];

export class Metrics {
  #jobs = new Map();
  #requests = new Map();
  #refused = 0;
  #buckets = bounds.map(() => 0);
  #seconds = 0;
  #count = 0;
  #delay = monitorEventLoopDelay({ resolution: 10 });

  constructor() {
    this.#delay.enable();
  }

  /** A JobEvent of the library. */
  job(event) {
    if (event.type === 'refused') this.#refused++;
    if (event.type !== 'finished') return;
    const labels = `kind="${event.job.kind}",outcome="${event.outcome}"`;
    this.#jobs.set(labels, (this.#jobs.get(labels) ?? 0) + 1);
    const seconds = event.milliseconds / 1000;
    for (const [i, bound] of bounds.entries()) if (seconds <= bound) this.#buckets[i]++;
    this.#seconds += seconds;
    this.#count++;
  }

  request(method, status) {
    const labels = `method="${method}",status="${status}"`;
    this.#requests.set(labels, (this.#requests.get(labels) ?? 0) + 1);
  }

  text(queue) {
    const { running, queued, bytes } = queue.load;
    const { memoryUsed, memoryPeak, memoryLimit } = queue.device.info();
    const lines = [];
    const metric = (name, type, help, samples) => {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`);
      for (const [labels, value] of samples) lines.push(`${name}${labels} ${value}`);
    };
    const one = (value) => [['', value]];
    const labelled = (map) => [...map].map(([labels, value]) => [`{${labels}}`, value]);
    metric('alps_jobs_total', 'counter', 'Finished jobs.', labelled(this.#jobs));
    metric('alps_jobs_refused_total', 'counter', 'Jobs refused because the queue was full.', one(this.#refused));
    metric('alps_jobs_running', 'gauge', 'Jobs that run.', one(running));
    metric('alps_jobs_queued', 'gauge', 'Jobs that wait.', one(queued));
    metric('alps_budget_bytes', 'gauge', 'Memory budget, and what of it running jobs take.', [
      ['{state="taken"}', bytes],
      ['{state="whole"}', queue.memoryBudget],
    ]);
    metric('alps_device_bytes', 'gauge', 'Memory of tensors on the device.', [
      ['{state="used"}', memoryUsed],
      ['{state="peak"}', memoryPeak],
      ['{state="limit"}', memoryLimit],
    ]);
    metric('alps_job_seconds', 'histogram', 'Time of finished jobs from their start.', []);
    for (const [i, bound] of bounds.entries()) lines.push(`alps_job_seconds_bucket{le="${bound}"} ${this.#buckets[i]}`);
    lines.push(`alps_job_seconds_bucket{le="+Inf"} ${this.#count}`);
    lines.push(`alps_job_seconds_sum ${this.#seconds}`, `alps_job_seconds_count ${this.#count}`);
    metric('http_requests_total', 'counter', 'Answered requests.', labelled(this.#requests));
    const quantiles = [50, 99].map((p) => [`{quantile="${p / 100}"}`, this.#delay.percentile(p) / 1e9]);
    metric('nodejs_eventloop_delay_seconds', 'gauge', 'Delay of the event loop.', quantiles);
    metric('process_resident_memory_bytes', 'gauge', 'Resident memory.', one(process.memoryUsage.rss()));
    return `${lines.join('\n')}\n`;
  }
}
