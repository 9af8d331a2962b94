#!/usr/bin/env bash
# Copies the tree as it is, without what was built in it, to a folder where something else is to be
# built: tests/copy_tree.sh FOLDER. Unchanged files keep their times, so a second build is short.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
git ls-files --cached --others --exclude-standard --deduplicate -z \
  | while IFS= read -r -d '' path; do [ ! -e "$path" ] || printf '%s\0' "$path"; done \
  | tar --create --null --files-from - | tar --extract --directory "$1"
