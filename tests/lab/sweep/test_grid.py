"""The grid of a sweep: what is given, what is refused, and the points that come of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_notebooks import BEGIN, FINISH, HOLD, WAVER, holding_notebook, write_notebook

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab import plan
from hicache_nixl.lab.sweep.grid import (
    Grid,
    check,
    chosen_notebooks,
    counts_only,
    make_grid,
    parse_axes,
    points_of,
    read_grid,
)


class TestOption:
    @pytest.mark.parametrize(
        ("pair", "values"),
        [
            ("queue=libaio,io_uring", ["libaio", "io_uring"]),
            ("page_bytes=4096", [4096]),
            ("mla=true,false", [True, False]),
            ("keys_sweep=[1,2],[4,8]", [[1, 2], [4, 8]]),
            ("keys_sweep=[1,2]", [[1, 2]]),
            ('storage_dir="/a,b",/c', ["/a,b", "/c"]),
        ],
    )
    def test_values_are_separated_by_commas_and_lists_have_brackets(self, pair, values):
        assert list(parse_axes([pair]).values()) == [values]

    @pytest.mark.parametrize(
        ("pairs", "says"),
        [
            (["queue"], "-p queue: expected name=value"),
            (["queue="], "queue has no value; expected values such as queue=A,B"),
            (["=libaio"], "expected name=value"),
            (["queue=[a"], "the values cannot be read"),
            (["queue=a", "queue=b"], "queue is given twice; write its values as queue=A,B"),
        ],
        ids=" ".join,
    )
    def test_what_cannot_be_read_is_one_line(self, pairs, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            parse_axes(pairs)


class TestFile:
    def written(self, folder: Path, text: str) -> Path:
        path = folder / "grid.yaml"
        path.write_text(text)
        return path

    def test_it_has_notebooks_parameters_and_hosts_and_options_override_it(self, tmp_path):
        path = self.written(
            tmp_path,
            "notebooks: [1, '03']\nparameters: {queue: [libaio, io_uring], calls: 3}\nhosts: [a]\nevery_host: false\n",
        )
        grid = read_grid(path, {"parameters": {"calls": [4, 5]}, "every_host": True})
        assert grid.notebooks == ("01", "03")
        assert grid.parameters == {"queue": ("libaio", "io_uring"), "calls": (4, 5)}
        assert (grid.every_host, grid.hosts) == (True, ("a",))

    def test_whole_numbers_are_numbers_of_notebooks_and_names_of_hosts(self, tmp_path):
        grid = read_grid(self.written(tmp_path, "notebooks: 1\nhosts: [0, 12]\n"), {})
        assert (grid.notebooks, grid.hosts) == (("01",), ("0", "12"))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("paramters: {}", "entry paramters is unknown; expected one of notebooks, profile, parameters"),
            ("every_host: some", "entry every_host: input should be a valid boolean"),
            ("parameters: {queue: []}", "parameter queue has an empty value"),
            ("parameters: {queue: }", "parameter queue has an empty value"),
            ("parameters: {queue: [a, a]}", "parameter queue has a value twice: a, a"),
            ("parameters: 3", "entry parameters: input should be a valid dictionary"),
            ("- a", "expected entries such as parameters:"),
            ("a: [", "cannot be read: it is not YAML"),
        ],
    )
    def test_what_cannot_work_is_one_line(self, tmp_path, text, says):
        with pytest.raises(ConfigError, match=re.escape(says)) as raised:
            read_grid(self.written(tmp_path, text), {})
        assert "\n" not in str(raised.value)

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"grid .*no.yaml cannot be read: No such file"):
            read_grid(tmp_path / "no.yaml", {})


class TestCheck:
    """The rules are those of ``reproduce``."""

    def check(self, here: bool = True, **parameters: list) -> None:
        grid = make_grid({"notebooks": ["01"], "parameters": parameters})
        check(grid, chosen_notebooks(grid, plan.notebooks()), here)

    def test_values_that_work_are_not_refused(self):
        self.check(queue=["libaio", "io_uring"], page_bytes=[4096, 65536])

    @pytest.mark.parametrize(
        ("parameters", "says"),
        [
            ({"no_such": [1]}, "parameter 'no_such' is unknown; 01_reproduce_the_leak accepts baseline_fds"),
            ({"queue": ["libaio", "aio"]}, "'aio' is unknown; expected one of libaio"),
            ({"page_bytes": [4096, 5]}, "5 does not work; expected a multiple of 8"),
            ({"calls": list(range(1, 1002))}, "the grid has 1001 points; expected 1000 or fewer"),
            ({"run_dir": ["x"]}, "run_dir is set by the run"),
        ],
        ids=["unknown", "choice", "number", "size", "run_dir"],
    )
    def test_one_value_that_cannot_work_refuses_the_grid(self, parameters, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            self.check(**parameters)

    def test_a_list_without_brackets_is_explained(self):
        grid = make_grid({"notebooks": ["03"], "parameters": {"keys_sweep": [1, 2]}})
        with pytest.raises(ConfigError, match=r"1 is not a list; .*brackets of its own: keys_sweep=\[1,2\]"):
            check(grid, chosen_notebooks(grid, plan.notebooks()), True)

    def test_folders_and_limits_of_this_machine_say_nothing_about_other_hosts(self):
        elsewhere = {"storage_dir": ["/no/such/disk"], "nofile_limit": [10**6]}
        for name, values in elsewhere.items():
            with pytest.raises(ConfigError):
                self.check(**{name: values})
        self.check(here=False, **elsewhere)

    def test_a_path_of_other_hosts_is_absolute(self):
        with pytest.raises(ConfigError, match="pages is relative; expected an absolute path of the hosts"):
            self.check(here=False, storage_dir=["pages"])


class TestPoints:
    GRID = Grid(parameters={"queue": ["libaio", "io_uring"], "calls": [3]})

    def test_each_is_on_every_host_and_named_after_what_varies(self):
        assert [point.slug for point in points_of(self.GRID, ["a", "b"])] == [
            "001-libaio-a",
            "002-io_uring-a",
            "003-libaio-b",
            "004-io_uring-b",
        ]

    def test_or_once_anywhere(self):
        points = points_of(self.GRID.model_copy(update={"every_host": False}), ["a", "b"])
        assert [(point.slug, point.host) for point in points] == [
            ("001-libaio", None),
            ("002-io_uring", None),
        ]
        assert points[1].values == {"queue": "io_uring", "calls": 3}

    def test_without_parameters_there_is_one_point(self):
        (point,) = points_of(Grid(), ["a"])
        assert (point.slug, point.values) == ("001-a", {})

    def test_a_name_is_one_of_a_run_whatever_the_values_are(self):
        grid = Grid(parameters={"storage_dir": ["/mnt/a b/../c", "x" * 200], "margin": [1.5, -2]})
        for point in points_of(grid, ["host/one"]):
            assert re.fullmatch(r"[\w+-][\w.+-]*", point.slug)
            assert len(point.slug) <= 60

    def test_many_hosts_make_many_points(self):
        grid = Grid(parameters={"calls": list(range(1, 301))})
        with pytest.raises(ConfigError, match="300 points on each of 4 hosts, 1200 together; expected 1000"):
            points_of(grid, list("abcd"))


class TestCountsOnly:
    def test_a_notebook_with_a_claim_about_an_interval_measures(self, tmp_path):
        counting = write_notebook(tmp_path / "a.ipynb", BEGIN.format(name="a"), HOLD, FINISH)
        measuring = write_notebook(tmp_path / "b.ipynb", BEGIN.format(name="b"), HOLD, WAVER, FINISH)
        assert (counts_only(counting), counts_only(measuring)) == (True, False)
        assert not counts_only(holding_notebook(tmp_path))

    def test_of_the_project_those_without_times_count(self):
        counting = [name[:2] for name, path in plan.notebooks().items() if counts_only(path)]
        assert counting == ["01", "02"]  # as the help of sweep says
