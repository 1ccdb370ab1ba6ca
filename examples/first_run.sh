#!/bin/sh
# Trains the example as a run of the mount, if there is no run of it yet, and shows what came of it.
# `sh examples/first_run.sh MOUNT`; the programs are those of the repository's .venv. $MAKE_WORDS is what was said
# to make beside its target, such as STATE=.
set -eu
mount=$1
words=${MAKE_WORDS:+ $MAKE_WORDS}
here=$(cd "$(dirname "$0")" && pwd)
bin=$(dirname "$here")/.venv/bin

find_run() {
    for latest in "$mount"/*/digits/latest; do
        if [ -d "$latest" ]; then
            realpath "$latest"
            return
        fi
    done
}

run=$(find_run)
if [ -z "$run" ]; then
    "$bin/cloudai" run --mount "$mount" --task digits -- "$bin/python" "$here/train_digits.py"
    run=$(find_run)
fi

echo
echo "$run"
ls -l "$run"
cat <<EOF

Try next:
  $bin/cloudai run --mount $mount --task digits -- $bin/python $here/train_digits.py
      the same again, as a run of its own; meanwhile \`tail -f $mount/*/digits/latest/train.log\`
  cp -r $run /tmp/digits
      take the results with you; \`cloudai ls\` lists the runs, \`cloudai status\` what is not durable yet
  make down$words && make up$words
      everything stops, and everything is there again
EOF
