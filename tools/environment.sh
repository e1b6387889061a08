# Sourced by ./quickstart and ./test, in the repository's root: one virtual environment, .venv, that grows by what each
# of them needs, and holds an editable install of precast. What is up to date is not installed again.

stamps=.venv/stamps

say() { printf '\n== %s (after %d s)\n' "$*" "$SECONDS"; }

fail() {
  printf '%s: %s\n' "$0" "$*" >&2
  exit 1
}

# The version of every tool that builds comes from pyproject.toml; only Python and a compiler are expected here.
make_environment() {
  local host_python=${PYTHON:-python3} compiler=${CXX:-c++}
  command -v "$host_python" >/dev/null || fail "no $host_python; install Python 3.10 or newer, or set PYTHON"
  "$host_python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$host_python is $("$host_python" --version); Python 3.10 or newer is needed (set PYTHON to choose another)"
  command -v "$compiler" >/dev/null || fail "no $compiler; install a C++20 compiler such as g++ 12, or set CXX"
  if [[ ! -x .venv/bin/python ]]; then
    say "creating .venv with $("$host_python" --version)"
    "$host_python" -m venv .venv
  fi
  mkdir -p "$stamps"
  export PATH=$PWD/.venv/bin:$PATH
  # setuptools is for TensorRT-RTX, whose package is a source distribution: without build isolation its tools are ours
  # to install, and the setuptools that Python brings along may be too old to write a wheel.
  install_once build-tools "scikit-build-core>=0.11" "cmake>=3.24" "ninja>=1.11" "setuptools>=70.1"
}

pip_install() {
  python -m pip install -qq --disable-pip-version-check --constraint tests/constraints.txt "$@"
}

# install_once NAME REQUIREMENT...: installs the requirements unless NAME was installed with the same ones.
install_once() {
  local stamp=$stamps/$1
  shift
  [[ -f $stamp && $(<"$stamp") == "$*" ]] && return
  say "installing $*"
  pip_install "$@" || return
  printf '%s' "$*" >"$stamp"
}

# unpack_once FOLDER REQUIREMENT: puts a package's files, and nothing that it needs, into a folder that Python does not
# import from. They are for its libraries, so it does not matter which Python the wheel is for.
unpack_once() {
  local -r folder=$1 requirement=$2
  local -r stamp=$folder/unpacked
  [[ -f $stamp && $(<"$stamp") == "$requirement" ]] && return
  say "unpacking $requirement into $folder"
  rm -rf "$folder" "$folder.part"
  pip_install --no-deps --no-compile --only-binary=:all: --python-version 3.12 --target "$folder.part" "$requirement" ||
    fail "$requirement cannot be downloaded, which tests open from $folder"
  printf '%s' "$requirement" >"$folder.part/unpacked"
  mv "$folder.part" "$folder"
}

# install_precast EXTRA: an editable install with that extra, repeated when native sources or pyproject.toml change.
# It sees changed Python files by itself; the library is opened by path, so nothing else would rebuild it.
install_precast() {
  local sources other
  sources=$(find CMakeLists.txt pyproject.toml precast/version.py plugins runtime/native -type f \
    ! -name '*.py' ! -name '*.pyc' ! -name '*.md' -print0 -o -path precast/version.py -print0 |
    sort -z | xargs -0 sha256sum | sha256sum)
  local -r stamp=$stamps/precast-$1
  [[ -f $stamp && $(<"$stamp") == "$sources" ]] && return
  say "building and installing precast[$1]"
  # There is one library for all extras: a stamp of other sources would call it up to date when they come back.
  for other in "$stamps"/precast-*; do
    if [[ -f $other && $(<"$other") != "$sources" ]]; then rm "$other"; fi
  done
  pip_install --no-build-isolation --editable ".[$1]" || return
  printf '%s' "$sources" >"$stamp"
}
