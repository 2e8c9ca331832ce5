"""Small source files in six languages with what tends to go wrong: text outside ASCII, escapes, nesting,
documentation in odd places."""

PYTHON = '''#!/usr/bin/env python
"""Module über alles."""
import os

GRÖSSE = 1  # Zähler


@decorated("naïve")
async def fetch(url: str, *, tries: int = 3) -> str:
    # not documentation
    r"""Fetches a página from ``url``.

    Longer text — with a dash.
    """
    text = f"{url!r:>{tries}} \\t it\\'s {GRÖSSE:03d} {{}}" 'joined \\u00e9'

    def again(left):
        "Tries again, left times."
        return again(left - 1) if left else None

    return text + again(tries)  # tail


class Store(dict):
    """Keeps values by key."""

    limit: int = 10

    def __init__(self):
        super().__init__()

    @property
    def size(self):
        """How many there are."""
        return len(self)

    class Inner:
        def deep(self): return lambda x: x ** 2


if os.name == "posix":
    def only_here(): pass
'''

JAVA = """package app;

import java.util.List;

/** Sums things — naïvely. */
@SuppressWarnings("unchecked")
public class Adder<T extends Number> extends Base {
    private int total = 0;

    /**
     * Adds a número.
     *
     * @param value what to add
     * @return the sum
     */
    @Override
    public int add(int value) {
        String s = "it's \\"quoted\\" \\u00e9 \\n";
        return total += value > 'x' ? 1 : 0x1F;
    }

    Adder() { this.total = 1; }

    // line comments
    // of two lines
    static class Inner {
        void run() { Runnable r = () -> { int q = 1; }; }
    }

    int trailing; // belongs to the field
    int bare() { return 1; }
}

interface Shape { /** Size in m². */ double area(); }
"""

GO = """package main

import "fmt"

// Total is the sum — naïve.
// It never fails.
func (r *Ledger[K]) Total(n int) (int, error) {
	s := `raw \\n straße`
	t := "esc \\t \\"q\\" é"
	c := make(chan int)
	go func() { c <- 1 }()
	return len(s) + len(t) + <-c, nil
}

// not documentation

func Map[T any](xs []T) {}

/* Ledger keeps entries. */
type Ledger[K comparable] struct {
	entries map[K]int // größe
}

type (
	// Shape has an area.
	Shape interface{ Area() float64 }
	Alias = int
)
"""

JAVASCRIPT = """#!/usr/bin/env node
/** Doubles a número. */
export const double = async (x) => { return 2 * x };

// Greets people,
// one at a time.
function* greet(name) { yield `hi ${name + "\\u00e9"} \\n`; }

class Walker extends Base {
  /** Walks on. */
  walk({ steps = 1, ...rest }) { return /a[/]\\d+/gi.test(this.#secret(steps)) ?? rest?.x; }
  #secret(n) { return n; }
  onDone = () => 'it\\'s';
  static get size() { return 1; }
}

const tools = {
  /* Opens it. */
  open: function () { return null; },
  close() { return undefined; },
};
module.exports.helper = function (a) { return a; };
(function () {
  // Hidden inside.
  function inner() { return <b>größe &amp; {1}</b>; }
})();
app.get("/x", function (req) { return req; });
"""

PHP = """<html><body>grüße <?php
/** Says hello — naïve. */
function hello($name) { return "hi $name {$name->x} \\t é" . 'it\\'s'; }

namespace App;

class Page extends Base implements Shown {
    /**
     * Renders the página.
     * @return string
     */
    #[Pure]
    public static function render(?int $x): string {
        return <<<TXT
  Text $x straße
  TXT;
    }
    public function __toString() { return ''; }
}
$late = function ($q) { return fn($z) => $z; };
?>
<b>Ende — <?= $late ?></b>
"""

RUBY = """# frozen_string_literal: true

# Things to count — naïve.
module Tally
  # Counts words.
  class Counter < Base
    LIMIT = 3r

    # Adds a wórd.
    # Twice if asked.
    def add(word, times: 1)
      text = "it's #{word} \\n é" 'b\\'c'
      list = %w(a b) + %i(c d)
      @words[:key] ||= word =~ /a\\/b/i ? <<~TXT : nil
        Text #{times} straße
      TXT
    end

    private def self.make(x) = new(x)

    def ==(other)
      # inside
      other.equal?(self)
    end
  end
end

=begin
Top level.
=end
def free; define_method(:dyn) { |a| a }; end
"""

SOURCES = {
    "store.py": PYTHON,
    "Adder.java": JAVA,
    "ledger.go": GO,
    "walker.js": JAVASCRIPT,
    "page.php": PHP,
    "tally.rb": RUBY,
}
LANGUAGES = {
    "store.py": "python",
    "Adder.java": "java",
    "ledger.go": "go",
    "walker.js": "javascript",
    "page.php": "php",
    "tally.rb": "ruby",
}


def write(folder):
    """Writes them all below a folder."""
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
