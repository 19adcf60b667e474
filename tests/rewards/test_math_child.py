"""The math process for real: limits, recovery, isolation, and both libraries behind it."""

import importlib.util
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparring.rewards import Grader, MathProcess
from sparring.rewards import grader as grader_module
from sparring.types import Problem

_BOMB = "9^{9^{9^9}}"
_CHILD = Path(grader_module.__file__).with_name("math_child.py")


@pytest.fixture(scope="module")
def shared():
    """A process for tests that leave it alive."""
    process = MathProcess("math_verify", cpu_seconds=5.0)
    yield process
    process.close()


@pytest.fixture
def own():
    """A process for tests that end it."""
    process = MathProcess("math_verify", cpu_seconds=0.5)
    yield process
    process.close()


@pytest.fixture(scope="module")
def mathruler():
    process = MathProcess("mathruler", cpu_seconds=1.0)
    yield process
    process.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and is_alive(pid):
        time.sleep(0.05)
    return not is_alive(pid)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=60
    )


# Limits


def test_a_hostile_answer_is_ended_within_its_processor_time_and_the_next_is_graded_right(own):
    assert own.judge("1/2", "\\frac{2}{4}") == "correct"
    first = own.pid
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert own.judge("5", _BOMB) == "timeout"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not is_alive(first)
    # RUSAGE_CHILDREN grows by the whole life of the ended child: its start, one answer, and the bomb's half second.
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 0.5 <= used < 6.0
    assert own.judge("1/2", "\\frac{3}{6}") == "correct"
    assert own.judge("1/2", "\\frac{1}{3}") == "wrong"
    assert own.num_started == 2


def test_wall_time_does_not_count(own):
    own.judge("1/2", "\\frac{2}{4}")
    os.kill(own.pid, signal.SIGSTOP)
    # Three times the limit goes by before the child may even begin, as on a machine that is busy with other things.
    threading.Timer(1.5, os.kill, (own.pid, signal.SIGCONT)).start()
    assert own.judge("1/2", "\\frac{3}{6}") == "correct"
    assert own.num_started == 1


def test_a_child_that_never_answers_meets_the_wall_limit(own):
    own.judge("1/2", "\\frac{2}{4}")
    own.wall_seconds = 0.2
    os.kill(own.pid, signal.SIGSTOP)
    assert own.judge("1/2", "\\frac{3}{6}") == "timeout"
    own.wall_seconds = 60.0
    # That verdict was about the machine and is not remembered.
    assert own.judge("1/2", "\\frac{3}{6}") == "correct"


def test_verdicts_within_the_limit_are_remembered(own):
    assert [own.judge("5", _BOMB) for _ in range(3)] == ["timeout"] * 3
    assert own.num_started == 1


# Recovery


def test_a_child_killed_by_hand_is_replaced(own):
    own.judge("1/2", "\\frac{2}{4}")
    os.kill(own.pid, signal.SIGKILL)
    assert own.judge("1/2", "\\frac{3}{6}") == "correct"
    assert own.num_started == 2


def test_a_child_killed_at_work_gets_the_answer_again():
    process = MathProcess("math_verify", cpu_seconds=2.0)
    try:
        process.judge("1/2", "\\frac{2}{4}")
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        assert process.judge("5", _BOMB) == "timeout"
        assert process.num_started == 2
    finally:
        process.close()


def test_an_answer_that_ends_two_children_is_crashed(tmp_path, monkeypatch):
    child = tmp_path / "child.py"
    child.write_text('print(\'{"ready": "x"}\', flush=True); input(); raise SystemExit(1)')
    monkeypatch.setattr(grader_module, "_CHILD", child)
    with Grader() as grader:
        problem = Problem(id="p1", question="?", images=(), answer="5", answer_kind="number")
        reward = grader.grade(problem, "\\boxed{\\sqrt{25}}", "stop")
        assert reward.reasons["answer"] == "crashed" and reward.parts["answer"] == 0.0
        assert grader.math.num_started == 2


def test_an_interrupt_leaves_no_reply_behind(own, monkeypatch):
    own.judge("1/2", "\\frac{2}{4}")

    def interrupted(stream, seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grader_module, "_read_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.judge("1/2", "\\frac{3}{6}")
    # Read as the next answer's, the reply left over would say "correct".
    assert own.judge("1/2", "\\frac{1}{3}") == "wrong"


def test_after_close_the_next_answer_starts_a_child(own):
    own.judge("1/2", "\\frac{2}{4}")
    pid = own.pid
    own.close()
    assert own.pid is None and not is_alive(pid)
    assert own.judge("1/2", "\\frac{3}{6}") == "correct"


# Sharing


def test_200_gradings_reuse_one_child():
    with Grader() as grader:
        for number in range(200):
            truth = Problem(id=f"p{number}", question="?", images=(), answer=f"{number}", answer_kind="number")
            right, wrong = f"\\boxed{{\\frac{{{3 * number}}}{{3}}}}", f"\\boxed{{\\frac{{{3 * number + 1}}}{{3}}}}"
            text, reason = (right, "correct") if number % 2 else (wrong, "wrong")
            assert grader.grade(truth, text, "stop").reasons["answer"] == reason
        assert grader.math.num_started == 1


def test_threads_share_one_child(shared):
    # Math-Verify's own time limit makes every verdict in a thread false.
    shared.judge("1/2", "\\frac{2}{4}")
    with ThreadPoolExecutor(4) as pool:
        answers = [f"\\frac{{{2 * number}}}{{{number}}}" for number in range(1, 41)]
        right = list(pool.map(lambda answer: shared.judge("2", answer), answers))
        wrong = list(pool.map(lambda answer: shared.judge("3", answer), answers))
    assert set(right) == {"correct"} and set(wrong) == {"wrong"}
    assert shared.num_started == 1


def test_a_forked_copy_uses_a_child_of_its_own():
    done = run_python(
        """
        import os
        from sparring.rewards import MathProcess
        process = MathProcess("math_verify", 5.0)
        process.judge("1/2", "\\\\frac{2}{4}")
        pid = process.pid
        if os.fork() == 0:
            good = process.judge("1/2", "\\\\frac{3}{6}") == "correct" and process.pid != pid
            process.close()
            os._exit(0 if good else 1)
        status = os.waitstatus_to_exitcode(os.wait()[1])
        good = process.judge("1/2", "\\\\frac{4}{8}") == "correct" and process.pid == pid
        process.close()
        print(status, good)
        """
    )
    assert done.stdout.split() == ["0", "True"], done.stderr


# Life and death


@pytest.mark.parametrize("is_pipe_held", [False, True])
def test_the_child_ends_when_its_parent_is_killed(is_pipe_held):
    # A forked sibling that holds the writing end of the child's input hides the parent's death from a mere reader.
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import os, sys, time
                from sparring.rewards import MathProcess
                process = MathProcess("math_verify", 5.0)
                process.judge("1/2", "\\\\frac{2}{4}")
                sibling = 0
                if sys.argv[1] == "True":
                    sibling = os.fork()
                    if sibling == 0:
                        time.sleep(60)
                        os._exit(0)
                print(process.pid, sibling, flush=True)
                time.sleep(60)
                """
            ),
            str(is_pipe_held),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        child, sibling = map(int, parent.stdout.readline().split())
        assert is_alive(child)
        parent.kill()
        try:
            assert wait_until_gone(child, 60.0)
        finally:
            if sibling:
                os.kill(sibling, signal.SIGKILL)


def test_a_missing_library_is_an_error_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError('No module named math_verify')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = MathProcess("math_verify", 1.0)
    with pytest.raises(RuntimeError, match=r"No module named math_verify; install what the math backend 'math_verify'"):
        process.judge("1/2", "\\frac{2}{4}")
    assert process.pid is None


def test_a_problem_with_an_unreadable_answer_is_an_error():
    with Grader() as grader, pytest.raises(ValueError, match=r"'p7'.*cannot be read as 'number'"):
        problem = Problem(id="p7", question="?", images=(), answer="\\frac{1}{", answer_kind="number")
        grader.grade(problem, "\\boxed{5}", "stop")


# Isolation


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_sees_no_secret_and_no_torch(own, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    own.judge("1/2", "\\frac{2}{4}")
    assert b"secret" not in Path(f"/proc/{own.pid}/environ").read_bytes()
    assert "libtorch" not in Path(f"/proc/{own.pid}/maps").read_text()


_ATTEMPTS = [
    "__import__('os').system('touch {marker}')",
    'ln("__import__(\\"os\\").system(\\"touch {marker}\\")")',
    "().__class__.__bases__[0].__subclasses__()",
    "open('{marker}', 'w')",
    "\u217c\u217c.\u217c('x')",
    "a.{{b}}",
    "_ _a",
    "\\_\\_a\\_\\_",
]


@pytest.mark.parametrize("attempt", _ATTEMPTS)
def test_mathruler_never_evaluates_what_could_reach_the_interpreter(attempt, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("math_child_under_test", _CHILD)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    marker = tmp_path / "marker"
    evaluated = []
    monkeypatch.setattr("mathruler.grader.grade_answer", lambda *pair: evaluated.append(pair))
    judge = child.load_mathruler()
    assert judge("5", attempt.format(marker=marker)) == "wrong"
    assert judge(attempt.format(marker=marker), "5") == "wrong"
    assert not evaluated and not marker.exists()
    judge("5", "4+1.5")
    assert evaluated == [("4+1.5", "5")]


def test_a_confined_process_cannot_reach_out(tmp_path):
    marker = tmp_path / "marker"
    done = run_python(
        """
        import importlib.util, os, socket, subprocess, sys
        spec = importlib.util.spec_from_file_location("child", sys.argv[1])
        child = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(child)
        marker = sys.argv[2]
        child.confine()
        for reach in (
            lambda: open(marker, "w"),
            lambda: open(marker, "ab"),
            lambda: os.open(marker, os.O_CREAT | os.O_WRONLY),
            lambda: os.system("touch " + marker),
            lambda: subprocess.run(["touch", marker]),
            lambda: os.mkdir(marker),
            lambda: os.fork(),
            lambda: socket.socket(),
        ):
            try:
                reach()
                print("reached")
            except PermissionError:
                print("refused")
        open(sys.argv[1]).close()
        import colorsys
        try:
            bytearray(2 * child.MEMORY_BYTES)
            print("unbounded")
        except MemoryError:
            print("bounded")
        """,
        str(_CHILD),
        str(marker),
    )
    assert done.stdout.split() == ["refused"] * 8 + ["bounded" if sys.platform == "linux" else "unbounded"], done.stderr
    assert not marker.exists()


def test_a_child_hands_over_after_its_number_of_requests(tmp_path, monkeypatch):
    code = _CHILD.read_text("utf-8")
    assert code.count("MAX_REQUESTS = 10_000") == 1
    child = tmp_path / "math_child.py"
    child.write_text(code.replace("MAX_REQUESTS = 10_000", "MAX_REQUESTS = 2"), "utf-8")
    monkeypatch.setattr(grader_module, "_CHILD", child)
    process = MathProcess("math_verify", 5.0)
    try:
        answers = [f"\\frac{{{number}}}{{{2 * number}}}" for number in range(2, 6)]
        assert [process.judge("1/2", answer) for answer in answers] == ["correct"] * 4
        assert process.num_started == 2
    finally:
        process.close()


# The libraries


@pytest.mark.parametrize(
    ("truth", "answer", "by_math_verify", "by_mathruler"),
    [
        ("2\\sqrt{3}", "\\sqrt{12}", "correct", "correct"),
        ("2\\sqrt{3}", "3\\sqrt{2}", "wrong", "wrong"),
        ("\\frac{1}{2}", "0.5", "correct", "correct"),
        # MathRuler: fractions must be reduced, integers written out, percent signs are dropped.
        ("1/2", "2/4", "correct", "wrong"),
        ("5", "\\sqrt{25}", "correct", "wrong"),
        ("5", "4+1", "correct", "wrong"),
        ("0.5", "50%", "correct", "wrong"),
        # An equation without a left side.
        ("5", "=5", "malformed", "correct"),
    ],
)
def test_where_the_libraries_agree_and_differ(shared, mathruler, truth, answer, by_math_verify, by_mathruler):
    assert shared.judge(truth, answer) == by_math_verify
    assert mathruler.judge(truth, answer) == by_mathruler


def test_mathruler_is_ended_by_its_limit_too(mathruler):
    # "**" passes MathRuler's own guard against towers of powers.
    assert mathruler.judge("x", "9**9**9**9*x") == "timeout"
    assert mathruler.judge("2\\sqrt{3}", "\\sqrt{12}") == "correct"
