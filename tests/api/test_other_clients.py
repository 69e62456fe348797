"""Clients of other languages, as they are: each where its runtime is there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.server import Server
from tests.pictures import quarters

# Java's client offers h2c with every request to http://, until a server has refused it.
JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.Path;

public class Client {
  public static void main(String[] given) throws Exception {
    var client = HttpClient.newHttpClient();
    for (int i = 0; i < 3; i++) {
      var request = HttpRequest.newBuilder(URI.create(given[0])).header("Content-Type", "image/png")
          .POST(HttpRequest.BodyPublishers.ofFile(Path.of(given[1]))).build();
      var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(answer.statusCode());
    }
  }
}
"""
GO = """
package main

import ("bytes"; "fmt"; "io"; "net/http"; "os")

func main() {
    photo, err := os.ReadFile(os.Args[2])
    if err != nil { panic(err) }
    for i := 0; i < 3; i++ {
        answer, err := http.Post(os.Args[1], "image/png", bytes.NewReader(photo))
        if err != nil { panic(err) }
        io.Copy(io.Discard, answer.Body)
        answer.Body.Close()
        fmt.Println(answer.StatusCode)
    }
}
"""
NODE = """
const [url, path] = process.argv.slice(2);
const body = require("fs").readFileSync(path);
(async () => {
  for (let i = 0; i < 3; i++) {
    const answer = await fetch(url, {method: "POST", body, headers: {"Content-Type": "image/png"}});
    await answer.text();
    console.log(answer.status);
  }
})();
"""


def curl(url: str, photo: Path) -> list[str]:
    form = ["-F", f"file=@{photo}"]
    raw = ["--data-binary", f"@{photo}", "-H", "Content-Type: image/png"]
    said = ["-s", "-o", "/dev/null", "-w", "%{http_code}\n", "--http2", url]
    return [
        *raw,
        *said,
        "--next",
        *form,
        *said,
        "--next",
        *raw,
        "-H",
        "Expect: 100-continue",
        *said,
    ]


def written(name: str, text: str) -> Callable[[str, Path], list[str]]:
    def words(url: str, photo: Path) -> list[str]:
        source = photo.parent / name
        source.write_text(text)
        first = ["run"] if name.endswith(".go") else []
        return [*first, str(source), url, str(photo)]

    return words


CLIENTS: dict[str, Callable[[str, Path], list[str]]] = {
    "curl": curl,
    "java": written("Client.java", JAVA),
    "go": written("client.go", GO),
    "node": written("client.js", NODE),
}


@pytest.mark.parametrize("program", CLIENTS)
def test_every_request_of_a_client_on_one_connection_is_answered(
    server: Server, tmp_path: Path, program: str
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    photo = tmp_path / "photo.png"
    photo.write_bytes(quarters())
    words = CLIENTS[program](f"{server.url}/segment", photo)
    run = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path
    )
    assert (run.returncode, run.stdout.split()) == (0, ["200"] * 3), run.stderr
