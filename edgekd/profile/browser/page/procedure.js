// The procedure of edgekd/profile/device/measure.py for the workers of a page: rounds of short blocks in
// rotated order until every median's 95 % interval is narrow. Its constants come with the plan.

export function median(values) {
  const ordered = Float64Array.from(values).sort();
  const middle = ordered.length >> 1;
  return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}

// 0-based ranks [low, high] of the order statistics that bound quantile q; null where `count` is too few.
export function quantileRanks(count, q, level = 0.95) {
  const tail = (1 - level) / 2;
  let choose = 0;
  let below = 0;
  let low = -1;
  let high = count;
  for (let k = 0; k <= count; k++) {
    below += Math.exp(choose + k * Math.log(q) + (count - k) * Math.log1p(-q));
    if (below <= tail) low = k;
    if (below >= 1 - tail) {
      high = k;
      break;
    }
    choose += Math.log(count - k) - Math.log(k + 1);
  }
  return [low >= 0 ? low : null, high < count ? high : null];
}

// The 95 % interval of the median; null when the values are too few.
export function medianInterval(values) {
  const [low, high] = quantileRanks(values.length, 0.5);
  if (low === null || high === null) return null;
  const ordered = Float64Array.from(values).sort();
  return [ordered[low], ordered[high]];
}

function relativeWidth(medians) {
  const interval = medianInterval(medians);
  return interval ? (interval[1] - interval[0]) / median(medians) : Infinity;
}

// Calls that one sample is the mean of, so that the ticks of the clock do not matter.
function callsPerSample(seconds, worker, plan) {
  return Math.max(1, Math.ceil((plan.procedure.ticks_per_sample * worker.tick) / seconds));
}

async function timedBlock(worker, calls, plan) {
  const block = await worker.ask({ do: "block", calls, seconds: plan.procedure.block_seconds });
  return { ...block, median: median(block.samples) };
}

async function warmUp(workers, plan) {
  const { steady_blocks, steady_share, warmup_seconds } = plan.procedure;
  const limit = Math.min(warmup_seconds, plan.max_seconds / 2);
  const states = workers.map(() => ({ medians: [], warmup: 0, spent: 0, calls: 1 }));
  const settled = ({ medians }) => {
    if (medians.length < steady_blocks) return false;
    const last = medians.slice(-steady_blocks);
    return Math.max(...last) - Math.min(...last) <= steady_share * median(last);
  };
  while (!states.every(settled) && Math.max(...states.map((state) => state.spent)) < limit) {
    for (const [position, worker] of workers.entries()) {
      const state = states[position];
      const block = await timedBlock(worker, state.calls, plan);
      state.medians.push(block.median);
      state.warmup += block.count;
      state.spent += block.total;
      state.calls = callsPerSample(block.median, worker, plan);
    }
  }
  return states.map((state) => ({
    warmup: state.warmup,
    settled: settled(state),
    calls: state.calls,
  }));
}

// For every worker: the seconds of each sample, the round of each, and how the warm-up went.
export async function rounds(workers, plan, phase, tell) {
  const warm = await warmUp(workers, plan);
  const blocks = workers.map(() => []);
  const medians = workers.map(() => []);
  const spent = workers.map(() => 0);
  for (;;) {
    const turn = blocks[0].length % workers.length;
    for (let i = 0; i < workers.length; i++) {
      const position = (turn + i) % workers.length;
      const block = await timedBlock(workers[position], warm[position].calls, plan);
      blocks[position].push(block.samples);
      medians[position].push(block.median);
      spent[position] += block.total;
    }
    const widths = medians.map(relativeWidth);
    tell({ phase, models: workers.map((worker) => worker.id), spent, widths, p50: medians.map(median) });
    const narrow = widths.every((width) => width < plan.interval);
    if (narrow && Math.min(...spent) >= plan.min_seconds) break;
    if (Math.max(...spent) >= plan.max_seconds) break;
  }
  return blocks.map((mine, position) => ({
    ...warm[position],
    seconds: mine.flatMap((samples) => [...samples]),
    rounds: mine.flatMap((samples, round) => samples.map(() => round)),
  }));
}
