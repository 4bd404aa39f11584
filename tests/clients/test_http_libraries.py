"""HTTP libraries of other languages with their defaults, against the whole platform: two answers on one connection.

Java's asks for an upgrade to HTTP/2 with every request.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.clients.test_clients import Place, place

__all__ = ["place"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

JAVA = """
import java.net.URI;
import java.net.http.*;

public class Post {
    public static void main(String[] arguments) throws Exception {
        var messages = "[{\\"role\\": \\"user\\", \\"content\\": \\"annual leave?\\"}]";
        var body = "{\\"model\\": \\"rag\\", \\"messages\\": " + messages + "}";
        var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/chat/completions"))
            .header("Authorization", "Bearer " + arguments[1])
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body)).build();
        var client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++)
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}
"""
NODE = """
const [url, key] = process.argv.slice(2);
const body = JSON.stringify({model: "rag", messages: [{role: "user", content: "annual leave?"}]});
const headers = {authorization: `Bearer ${key}`, "content-type": "application/json"};
for (let i = 0; i < 2; i++) {
  const response = await fetch(`${url}/chat/completions`, {method: "POST", headers, body});
  await response.text();
  console.log(response.status);
}
"""
GO = """
package main

import ("fmt"; "io"; "net/http"; "os"; "strings")

func main() {
	body := `{"model": "rag", "messages": [{"role": "user", "content": "annual leave?"}]}`
	for i := 0; i < 2; i++ {
		request, _ := http.NewRequest("POST", os.Args[1]+"/chat/completions", strings.NewReader(body))
		request.Header.Set("Authorization", "Bearer "+os.Args[2])
		request.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(request)
		if err != nil { panic(err) }
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		fmt.Println(response.StatusCode)
	}
}
"""

MISSING = [command for command in ("java", "node", "go") if shutil.which(command) is None]


@pytest.mark.parametrize(
    ("command", "file", "program"),
    [(["java"], "Post.java", JAVA), (["node"], "post.mjs", NODE), (["go", "run"], "post.go", GO)],
    ids=["Java", "Node", "Go"],
)
async def test_a_library_of_another_language_gets_answers(
    place: Place, tmp_path: Path, command: list[str], file: str, program: str
) -> None:
    if command[0] in MISSING:
        pytest.skip(f"{command[0]} is not installed")
    path = tmp_path / file
    await asyncio.to_thread(path.write_text, program)
    key = (await asyncio.to_thread((place.folder / ".genaifactory" / "key").read_text)).strip()
    process = await asyncio.create_subprocess_exec(
        *(*command, str(path), place.url, key),
        cwd=tmp_path,
        env=os.environ | {"GOTOOLCHAIN": "local"},  # downloads nothing
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(240):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert output.split() == [b"200", b"200"], errors.decode(errors="replace")
