import { existsSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';

/** The machine as far as it decides which addon fits. */
export interface Machine {
  platform: string;
  arch: string;
  /** `glibc 2.36`, `musl`, or empty elsewhere than on Linux. */
  libc: string;
}

export function thisMachine(): Machine {
  return { platform: process.platform, arch: process.arch, libc: process.platform === 'linux' ? libc() : '' };
}

function libc(): string {
  // The report looks up the names of network addresses unless told not to, which takes seconds.
  const report = process.report as typeof process.report & { excludeNetwork?: boolean };
  const { excludeNetwork } = report;
  report.excludeNetwork = true;
  const { header } = report.getReport() as { header?: { glibcVersionRuntime?: string } };
  report.excludeNetwork = excludeNetwork;
  return header?.glibcVersionRuntime ? `glibc ${header.glibcVersionRuntime}` : 'musl';
}

const build = 'build the addon from source: docs/install.md in this package says how (three commands)';

/** What the loader says, what it means, and what to do; the first that fits is taken. */
const causes: {
  said: RegExp;
  /** Where it is the cause; default: everywhere. */
  when?: (m: Machine) => boolean;
  cause: (m: Machine, match: RegExpExecArray) => string;
  remedies: string[];
}[] = [
  {
    said: /No native build was found/,
    when: isBroughtAlong,
    cause: () => 'the folder prebuilds/linux-x64, which this package brings along, is not beside its code',
    remedies: [
      'if the program was bundled (esbuild, webpack, ...): mark alps-prune as external, an addon cannot be bundled',
      'else install the package again; when copying it, copy the whole folder prebuilds/',
      build,
    ],
  },
  {
    said: /No native build was found/,
    cause: (m) => `this package brings an addon for linux-x64 with glibc, and this is ${where(m)}`,
    remedies: [build],
  },
  {
    said: /GLIBC_[\d.]+' not found/,
    cause: (m) => `the addon needs a newer glibc (the published one 2.34) than this system has (${m.libc})`,
    remedies: ['use Debian 12, Ubuntu 22.04, RHEL 9 or newer, in a container for example', build],
  },
  {
    said: /((?:GLIBCXX|CXXABI)_[\d.]+)' not found/,
    cause: (_, [, wanted]) => `the C++ library that this process has loaded is too old, it lacks ${wanted}`,
    remedies: [
      'install a newer libstdc++ (conda: conda install libstdcxx-ng), or take the folder of an older one out of LD_LIBRARY_PATH',
      build,
    ],
  },
  {
    said: /ld-linux|__[a-z_]+_chk: symbol not found|Error relocating/,
    cause: () => 'the addon is for glibc, and this system has musl',
    remedies: [build],
  },
  {
    said: /(libalps-[\w.+-]+): cannot open shared object file/,
    cause: (_, [, name]) => `${name}, which this package brings along, is not beside the addon`,
    remedies: ['install the package again; when copying it, copy the whole folder prebuilds/'],
  },
  {
    said: /(lib[\w.+-]+): cannot open shared object file/,
    cause: (_, [, name]) =>
      `the addon was built on this machine, or for one like it, and its library ${name} is missing`,
    remedies: ['install it (Debian, Ubuntu: apt-get install libdnnl2 libopenblas0 libgomp1)', build],
  },
  {
    said: /failed to map segment|Operation not permitted|Permission denied/,
    cause: () => 'the system does not let programs be loaded from this folder (a noexec mount, or its permissions)',
    remedies: ['install the package on a file system that is not mounted noexec, readable for this user'],
  },
  {
    said: /invalid ELF header|wrong ELF class|file too short|not a mach-o|not a valid Win32/i,
    cause: (m) => `the file is broken, or for another kind of machine than this (${where(m)})`,
    remedies: [
      'delete node_modules and install again on this machine: node_modules does not carry over to another kind',
      build,
    ],
  },
  {
    said: /static TLS block/,
    cause: () => 'too many libraries that are loaded already use thread-local memory',
    remedies: ['load alps-prune before other addons, or set GLIBC_TUNABLES=glibc.rtld.optional_static_tls=4096'],
  },
];

/** Whether the published package has an addon for a machine. */
function isBroughtAlong({ platform, arch, libc }: Machine): boolean {
  return platform === 'linux' && arch === 'x64' && libc.startsWith('glibc');
}

function where({ platform, arch, libc }: Machine): string {
  return `${platform}-${arch}${libc && ` with ${libc}`}`;
}

/** The addons that are there, whether for this machine or not. */
function addons(root: string): string[] {
  const inside = (folder: string) => (existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : []);
  return [join(root, 'build', 'Release'), ...inside(join(root, 'prebuilds'))]
    .flatMap(inside)
    .filter((file) => file.endsWith('.node'));
}

/** Why the addon of the package at `root` could not be loaded: what the loader said, the cause, what was there, what to do. */
export function explainLoadFailure(reason: string, root: string, machine: Machine = thisMachine()): string {
  const found = addons(root).map((file) => relative(root, file));
  let cause = 'not known';
  let remedies = ['install the package again', build];
  for (const known of causes) {
    const match = known.said.exec(reason);
    if (!match || known.when?.(machine) === false) continue;
    cause = known.cause(machine, match);
    remedies = known.remedies;
    break;
  }
  return [
    `The native addon could not be loaded on ${where(machine)}, Node ${process.versions.node}.`,
    `Cause: ${cause}`,
    `Said: ${reason.trim().replace(/\s*\n\s*/g, '; ')}`,
    `Looked in: ${root}`,
    `Addons there: ${found.length > 0 ? found.join(', ') : 'none in build/Release and prebuilds/*'}`,
    'What to do:',
    ...remedies.map((remedy) => `  - ${remedy}`),
  ].join('\n');
}
