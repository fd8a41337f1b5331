#!/usr/bin/env bash
# What only a GPU can tell: gpu.sh OUT PLACE TOKENIZER DATA [PART…]
#   OUT        directory for results: gpu_tests.log, memory.jsonl, and a JSON and a log of each comparison
#   PLACE      scratch directory for networks with random weights, 20 GB
#   TOKENIZER  directory of a tokenizer
#   DATA       JSONL file with prompt and completion, of skewed lengths
#   PART       profile (2 minutes on an H200), tests and memory (5, at the same time), head (1), start (1), speed (8, of
#              which networks 1), packed (3), peers (6), in that order; by default all. Only tests and memory are not timed
# In the order of what is worth most, so that it may be cut short. PYTHON names the interpreter; STEPS are those of an arm,
# of which 4 are not measured. SMALL=1 tries the same on a CPU with tiny networks.
set -uo pipefail
out=$(realpath "$1") place=$(realpath "$2") tokenizer=$(realpath "$3") data=$(realpath "$4")
parts=" ${*:5} "
[ "$parts" != "  " ] || parts=" profile tests memory head start speed packed peers "
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 PYTHON=${PYTHON:-python3}
small=llama-3.2-1b large=llama-3.1-8b length=2048 mixed=bf16-mixed pure=bf16-true steps=${STEPS:-16}
[ -z "${SMALL:-}" ] || { small=llama-256 large=llama-256 length=64 mixed=32-true pure=32-true steps=6; }

wanted() { [[ "$parts" == *" $1 "* ]]; }

bench() { # NAME OPTION…
  local name=$1 began=$SECONDS
  shift
  $PYTHON scripts/benchmark.py training --tokenizer "$tokenizer" --place "$place" --repeats 1 --steps "$steps" \
    --json "$out/$name.json" "$@" >"$out/$name.log" 2>&1 || echo "$name failed"
  grep -v Warning "$out/$name.log" | tail -60 | cut -c 1-400
  echo "-- $name: $((SECONDS - began)) s"
}

memory() { # NETWORK METHOD LENGTH PRECISION [--checkpointing]
  bench "memory_$1_$2_$3_$4${5:-}" --network "$1" --method "$2" --length "$3" --precision "$4" ${5:-} --arms ftlab \
    --data "$place/long_$3.jsonl" --batch-size 2 --steps 3 --warm 1 >/dev/null
}
export -f bench memory
export out place tokenizer steps

# rows that are all about as long as they may be, nearly every token a target
$PYTHON - "$data" "$tokenizer" "$place" $((length / 4)) $length <<'PYTHON'
import json, sys
from transformers import AutoTokenizer
data, tokenizer, place, *lengths = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
rows = map(json.loads, open(data))
tokens = tokenizer("\n".join(row["prompt"] + row["completion"].replace("<|endoftext|>", "") for row in rows))["input_ids"]
for length in map(int, lengths):
    size = length - 10  # the prompt, the end, and room: pieces are not always encoded again as they were
    with open(f"{place}/long_{length}.jsonl", "w") as file:
        for start in range(0, min(len(tokens), 200 * size) - size, size):
            text = tokenizer.decode(tokens[start : start + size])
            file.write(json.dumps({"prompt": "Text:", "completion": text}) + "\n")
PYTHON
make_network() {
  $PYTHON -c "import sys; sys.path.insert(0, 'scripts'); from pathlib import Path; from training_cost import network_directory
network_directory('$1', Path('$tokenizer'), Path('$place'))"
}
make_network $small
if wanted profile; then
  for arm in ftlab bare; do
    bench profile_$arm --network $small --method full --precision $pure --length "$length" --batch-size 4 \
      --data "$place/long_$length.jsonl" --arms $arm --profiled "$out/trace_$arm.json"
    gzip -f "$out/trace_$arm.json"
  done
fi
if wanted tests; then
  timeout -s INT 300 "$PYTHON" -m pytest -p no:cacheprovider -m gpu -n 8 --basetemp="$place/tests" --durations=20 \
    tests/gpu tests/modules/test_optimizers.py >"$out/gpu_tests.log" 2>&1 &
  tests=$! # memory does not depend on what else is computed
  wanted memory || wait $tests
fi
! [[ "$parts" =~ memory|start|speed|peers ]] || make_network $large

if wanted memory; then
  for checkpointing in "" --checkpointing; do
    for l in $((length / 4)) $length; do
      for job in "$large lora $l $mixed" "$large qlora $l $mixed" "$small full $l $mixed" "$small full $l $pure" \
        "$small lora $l $mixed" "$small qlora $l $mixed"; do
        echo "$job $checkpointing"
      done
    done
  done | xargs -P "${PARALLEL:-5}" -I{} bash -c 'memory {}'
  $PYTHON - "$out" <<'PYTHON'
import json, pathlib, sys
with open(sys.argv[1] + "/memory.jsonl", "w") as file:
    for path in sorted(pathlib.Path(sys.argv[1]).glob("memory_*.json")):
        figures = json.loads(path.read_text())
        ftlab = figures["ftlab"]
        line = figures["work"] | ({"memory": ftlab["memory"][0], "tokens": ftlab["tokens"]} if "memory" in ftlab else ftlab)
        print(json.dumps(line), file=file)
        path.unlink()
        path.with_suffix(".log").unlink()
PYTHON
  wc -l "$out/memory.jsonl"
fi
if wanted tests; then
  wait $tests
  grep -E "^(FAILED|ERROR)" "$out/gpu_tests.log" | cut -c 1-300
  tail -1 "$out/gpu_tests.log"
  echo "== tests and memory after $SECONDS s"
fi
if wanted head; then # at how many rows at a time
  $PYTHON scripts/benchmark.py head --repeats 1 --gpu-cases --arms "all logits" liger ftlab ftlab:512 ftlab:1024 ftlab:2048 \
    --json "$out/head.json" 2>&1 | tee "$out/head.log" | tail -40
fi

if wanted start; then # where the seconds to the first step go
  began=$SECONDS
  $PYTHON -m cProfile -o "$out/start.prof" -m ftlab fit -c experiments/base.yaml -c experiments/method/lora.yaml \
    --model.network.path "$place/$large" --model.network.dtype "$([ "$mixed" = 32-true ] && echo float32 || echo bfloat16)" \
    --data.path "$place/long_$length.jsonl" --data.template plain --data.splits.validation 0.0 --data.splits.test 0.0 \
    --data.batch_size 1 --data.max_length "$length" --data.overflow drop --trainer.precision "$mixed" \
    --trainer.max_steps 1 --trainer.limit_val_batches 0 --run.root "$place/runs" --run.name start --wandb.mode disabled \
    >"$out/start.log" 2>&1 || tail -3 "$out/start.log"
  $PYTHON - "$out/start.prof" >"$out/start.txt" <<'PYTHON'
import pstats, sys
stats = pstats.Stats(sys.argv[1]).strip_dirs()
stats.sort_stats("tottime").print_stats(25)
stats.sort_stats("cumulative").print_stats(120)
PYTHON
  head -40 "$out/start.txt" | cut -c 1-150
  echo "-- start: $((SECONDS - began)) s"
fi
full=(--length "$length" --data "$place/long_$length.jsonl" --batch-size 4)
if wanted speed; then
  bench full_small --network $small --method full --precision $pure "${full[@]}" --arms bare:unmasked+compile ftlab:compile ftlab bare:unmasked
  bench lora_large --network $large --method lora --precision $mixed "${full[@]}" --arms bare:unmasked+compile ftlab:compile
  bench qlora_large --network $large --method qlora --precision $mixed "${full[@]}" --arms ftlab:compile ftlab
  bench full_large --network $large --method full --precision $pure "${full[@]}" --arms ftlab:compile
fi
if wanted packed; then # steps as large as a card is kept busy by, all in some 960 records
  bench packed --network $small --method lora --precision $mixed --length "$length" --data "$data" --batch-size 8 \
    --packs 4 --steps $((steps > 10 ? 120 : 40)) --arms ftlab:pack+compile trl:pack+liger ftlab:pack trl:pack
fi
if wanted peers; then
  bench full_small_peers --network $small --method full --precision $pure "${full[@]}" --arms bare hf trl
  bench lora_large_peers --network $large --method lora --precision $mixed "${full[@]}" --arms bare hf trl trl:liger
  bench skewed --network $small --method lora --precision $mixed --length "$length" --data "$data" --batch-size 8 \
    --arms bare ftlab:compile ftlab hf trl
fi
echo "== after $SECONDS s"
