#!/bin/sh
# Is everything there that promot is built with? If not, installs it (apt as root or with sudo, brew on macOS) or prints
# the one line to run. CC and CXX are the compilers to ask.
probe() {
    printf '#include <cjson/cJSON.h>\n#include <utf8proc.h>\n#include <zlib.h>\nint main(void) { return 0; }\n' >build/probe.c
    printf '#include <sentencepiece_processor.h>\n#include <sentencepiece_trainer.h>\nint main() { return 0; }\n' >build/probe.cc
    prefix=$(brew --prefix 2>/dev/null) && include="-I$prefix/include"
    ${CC:-cc} $include -c build/probe.c -o build/probe.o 2>/dev/null && ${CXX:-c++} -std=c++17 $include -c build/probe.cc -o build/probe.o 2>/dev/null
}

mkdir -p build
[ -f build/setup.done ] && exit 0
if ! probe; then
    packages="g++ libsentencepiece-dev libcjson-dev libutf8proc-dev zlib1g-dev"
    if command -v apt-get >/dev/null; then
        if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; else
            echo "promot needs some libraries. Please run: sudo apt-get install -y $packages" >&2
            exit 1
        fi
        echo "installing $packages" >&2
        { $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq $packages; } >build/setup.log 2>&1
    elif command -v brew >/dev/null; then
        packages="sentencepiece cjson utf8proc zlib libomp"
        brew install -q $packages >build/setup.log 2>&1
    else
        echo "promot needs a C++ compiler and the libraries sentencepiece, cJSON, utf8proc and zlib, with their headers" >&2
        exit 1
    fi
    if ! probe; then
        echo "the installation failed; its log is build/setup.log. What is needed: $packages" >&2
        exit 1
    fi
fi
rm -f build/probe.*
touch build/setup.done
