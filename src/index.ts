/** Public exports, nothing else. */
export type { LayerSparsities } from './allocation/allocation.js';
export { searchAllocation } from './allocation/search.js';
export type {
  AllocationCandidate,
  AllocationSearch,
  AllocationSearchEvent,
  AllocationSearchOptions,
  SearchEvaluation,
  SearchObjective,
} from './allocation/search-options.js';
export type { UnitSensitivity } from './allocation/units.js';
export type { CalibrationOptions, CalibrationReport } from './calibration/calibration.js';
export type { PerplexityProtocol } from './calibration/protocols.js';
export type { TextSource } from './calibration/text.js';
export { Checkpoint } from './checkpoint/folder.js';
export type { TensorInfo } from './checkpoint/header.js';
export { SafetensorsFile, writeSafetensors } from './checkpoint/safetensors.js';
export { compare } from './compare/compare.js';
export type {
  CompareEvent,
  CompareOptions,
  Comparison,
  ComparisonCell,
  ComparisonFailure,
  ComparisonText,
  TaskScore,
} from './compare/comparison.js';
export {
  type PaperOptions,
  type PaperReport,
  type RefitRow,
  reproducePaper,
  type SupportCurve,
} from './compare/paper.js';
export { Device, type DeviceInfo, type DeviceName, type DeviceOptions } from './device/device.js';
export type { DeviceChoice } from './device/team.js';
export { AlpsError, type AlpsErrorCode } from './errors.js';
export { type EvaluateOptions, type Evaluation, evaluatePerplexity } from './evaluate.js';
export {
  type EvaluateTasksOptions,
  evaluateTasks,
  type TaskResult,
  type TaskSample,
  type TaskSource,
} from './evaluate-tasks.js';
export { type GeneratedText, type GenerateOptions, generateText } from './generate.js';
export { inspectModel, type ModelInspection, type TensorInspection } from './inspect.js';
export { estimateLayerBytes, estimateModelBytes, type LayerSize } from './jobs/estimate.js';
export type { JobEvent, JobInfo, QueueLoad } from './jobs/events.js';
export { JobQueue } from './jobs/job-queue.js';
export type { JobOptions, JobQueueOptions } from './jobs/options.js';
export type { Logger } from './logger.js';
export { version } from './package-version.js';
export { type PruneEvent, type PruneOptions, type PruneReport, prune } from './prune.js';
export type { DenseTargetOptions } from './pruning/dense-target.js';
export type { DsnotOptions, Method, Metric, Precision, PruningOptions, Refit } from './pruning/options.js';
export type { Pattern } from './pruning/pattern.js';
export type { Preset } from './pruning/preset.js';
export { type Numbers, type PruneLayerOptions, type PruneLayerResult, pruneLayer } from './pruning/prune-layer.js';
export type { ScheduleName } from './pruning/rho-schedule.js';
export type { TracePoint } from './pruning/solution.js';
export { writeComparison } from './report/comparison-report.js';
export { writePaperReport } from './report/paper-report.js';
export type { BlockReport, LayerReport, Propagation } from './traversal.js';
