#!/bin/sh
# Puts a library in the place of each that is named, with its name, symbols and versions and nothing behind them:
#
#   stub.sh LIBRARY...
#
# For libraries of a GPU that the loader wants and nothing calls where there is none; a call ends the process (SIGILL).
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for library in "$@"; do
  readelf --dynamic --wide "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p' > "$work/name"
  # Of "12: 0000 42 FUNC GLOBAL DEFAULT 11 symbol@@VERSION": kind, symbol, size and version, which not all have.
  readelf --dyn-syms --wide "$library" | awk '
    $5 ~ /GLOBAL|WEAK|UNIQUE/ && $7 != "UND" && $7 != "ABS" && $8 { split($8, part, /@+/); print $4, part[1], $3, part[2] }
  ' | sort --unique > "$work/symbols"
  awk '
    !($2 in seen) {
      seen[$2] = 1
      kind = $1 == "OBJECT" ? "object" : "function"
      section = $1 == "OBJECT" ? ".bss" : ".text"
      content = $1 == "OBJECT" ? ".zero " $3 : "ud2"
      printf "%s\n.globl %s\n.type %s, @%s\n%s: %s\n", section, $2, $2, kind, $2, content
    }
    END { print ".section .note.GNU-stack,\"\",@progbits" }
  ' "$work/symbols" > "$work/stub.s"
  awk '
    $4 { of[$4] = of[$4] " " $2 ";"; versioned = 1 }
    END {
      for (version in of) printf "%s { global:%s };\n", version, of[version]
      if (!versioned) print "{ global: *; };"
    }
  ' "$work/symbols" > "$work/versions"
  gcc -shared -nostdlib -Wl,-soname,"$(cat "$work/name")" -Wl,--version-script="$work/versions" \
    -o "$work/stub.so" "$work/stub.s"
  mv "$work/stub.so" "$library"
done
