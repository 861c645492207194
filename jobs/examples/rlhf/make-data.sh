#!/bin/sh
# Writes data for these examples into DIR (default: data/rlhf): about an island that doesn't exist, so that one sees
# what the model learned.   jobs/examples/rlhf/make-data.sh [DIR]
set -eu
dir=${1:-data/rlhf}
train=$(command -v navarch-train || echo .venv/bin/navarch-train)
"$train" data synthesize "$dir/pt.jsonl" --kind pt --rows 1600
"$train" data synthesize "$dir/sft.jsonl" --kind sft --rows 640
"$train" data synthesize "$dir/pairs.jsonl" --kind dpo --rows 320
"$train" data synthesize "$dir/prompts.jsonl" --kind prompts --rows 200
