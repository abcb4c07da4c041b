"""What a run consists of: which notebooks, with which parameters, and what is refused before anything runs."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from tiny_notebooks import holding_notebook

from hicache_nixl.config import LAYOUTS, QUEUES
from hicache_nixl.errors import ConfigError
from hicache_nixl.lab import plan
from hicache_nixl.lab.plan import choose_notebooks, parameters_for, parse_parameters

KNOWN = ("margin", "mla", "page_bytes", "queue", "sizes", "storage_dir", "strict")

BAD = {  # for each parameter of a notebook, a value that cannot work
    "calls": 0,
    "queue": "uring",
    "layout": "",
    "repeats": 0,
    "keys_per_call": -1,
    "page_bytes": 12,
    "page_sweep": [0],
    "keys_sweep": ["a"],
    "strict": "maybe",
    "mla": 2,
    "baseline_fds": 3,
    "nofile_limit": 0,
    "soak_calls": 0,
    "memory_margin": 0,
    "core_margin": float("inf"),
    "small_reads": 1.5,
    "deleted_files": None,
    "stored_sweep": [0],
    "stored_margin": -1,
    "requests": 0,
    "rounds": 0,
    "few_rounds": 0,
    "prompts": 5,
    "index_rows": 16383,
    "clients": [0],
    "volumes": [17],
    "model": "no such model",
    "prompts_per_second": 0,
    "tokens_per_prompt": 63,
    "network_gbit": -1.0,
    "storage_dir": 7,
    "watched": "/nowhere.csv",
}


class TestParameterPairs:
    @pytest.mark.parametrize(
        ("pair", "value"),
        [
            ("n=4096", 4096),
            ("n=1.5", 1.5),
            ("n=true", True),
            ("n=io_uring", "io_uring"),
            ("n=/mnt/nvme", "/mnt/nvme"),
            ("n=[1, 4]", [1, 4]),
            ("n=", ""),
            ("n=a=b", "a=b"),
            ("n=@x", "@x"),
        ],
    )
    def test_a_value_is_read_as_what_it_looks_like(self, pair, value):
        assert parse_parameters([pair]) == {"n": value}

    @pytest.mark.parametrize("pair", ["page_bytes", "=4096", ""])
    def test_what_is_no_pair_is_refused(self, pair):
        with pytest.raises(ConfigError, match="expected name=value"):
            parse_parameters([pair])

    def test_the_last_of_two_counts(self):
        assert parse_parameters(["n=1", "n=2"]) == {"n": 2}


@pytest.fixture
def chosen(tmp_path: Path) -> dict[str, Path]:
    return {"00_holds": holding_notebook(tmp_path)}


class TestParameters:
    def test_what_is_given_overrides_the_notebooks_section_which_overrides_all(self, chosen):
        profile = {
            "all": {"page_bytes": 8, "margin": 1.5, "queue": "posix_aio"},
            "00_holds": {"page_bytes": 16, "margin": 2.0},
        }
        assert parameters_for(chosen, profile, {"page_bytes": 24}) == {
            "00_holds": {"page_bytes": 24, "margin": 2.0, "queue": "posix_aio"}
        }

    def test_an_unknown_one_is_refused_with_those_that_are_known(self, chosen):
        with pytest.raises(ConfigError, match="'page_byte' is unknown; 00_holds accept") as caught:
            parameters_for(chosen, {}, {"page_byte": 4096})
        assert str(caught.value).endswith(", ".join(KNOWN))

    def test_an_unknown_one_in_a_profile_is_refused_too(self, chosen):
        with pytest.raises(
            ConfigError, match=r"00_holds has no parameter 'page_byte'; expected one of .*page_bytes"
        ):
            parameters_for(chosen, {"00_holds": {"page_byte": 4096}}, {})

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("page_bytes", "big", "a whole number"),
            ("page_bytes", 1.5, "a whole number"),
            ("page_bytes", True, "a whole number"),
            ("page_bytes", None, "a whole number"),
            ("mla", 1, "true or false"),
            ("mla", "yes", "true or false"),
            ("queue", 3, "text"),
            ("storage_dir", None, "text"),
            ("margin", "small", "a number"),
            ("margin", True, "a number"),
            ("sizes", 4, "a list"),
            ("sizes", [4, "many"], "a whole number"),
        ],
    )
    def test_a_value_of_another_type_is_refused_with_what_was_expected(self, chosen, name, value, expected):
        with pytest.raises(
            ConfigError, match=rf"{name} of 00_holds: .* is not {expected}; expected .* such as"
        ):
            parameters_for(chosen, {}, {name: value})

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("queue", "uring", f"'uring' is unknown; expected one of {', '.join(QUEUES)}"),
            ("page_bytes", 0, "0 is too small; expected 1 or more"),
            ("page_bytes", -8, "-8 is too small"),
            ("page_bytes", 4097, "4097 does not work; expected a multiple of 8"),
            ("margin", 0.0, "0.0 is too small; expected a number above 0"),
            ("margin", float("nan"), "nan is not a finite number"),
            ("sizes", [], r"the list is empty; expected values such as \[1, 4\]"),
            ("sizes", [1, 0], "0 is too small; expected 1 or more"),
            ("storage_dir", "/nowhere", "/nowhere: no such folder; expected an existing"),
        ],
    )
    def test_a_value_that_cannot_work_is_refused_with_what_was_expected(self, chosen, name, value, says):
        with pytest.raises(ConfigError, match=says):
            parameters_for(chosen, {}, {name: value})

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("layout", "page_last", f"expected one of {', '.join(LAYOUTS)}"),
            ("calls", -3, "expected 1 or more"),
            ("soak_calls", 500, "500 is too small; expected 600 or more"),
            ("calls", 10**20, "is too large; expected 1000000 or less"),
            ("keys_per_call", 10**7, "is too large; expected 1000000 or less"),
            ("page_bytes", 2**40, "is too large; expected 1073741824 or less"),
            ("baseline_fds", -1, "expected 16 or more"),
            ("baseline_fds", 1024, "1024 descriptors do not fit below nofile_limit, which is 1024"),
            (
                "storage_dir",
                "/proc",
                r"/proc: nothing can be created in it .*; expected an existing, writable",
            ),
            ("nofile_limit", 20001, "above the hard limit of RLIMIT_NOFILE, which is 20000"),
        ],
    )
    def test_so_are_those_of_the_projects_own_notebooks(self, monkeypatch, name, value, says):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 20000))
        with pytest.raises(ConfigError, match=says):
            parameters_for(choose_notebooks(["01", "05"], plan.notebooks()), {}, {name: value})

    def test_pages_that_no_memory_holds_are_refused(self):
        given = {"keys_per_call": 1_000_000, "page_bytes": 2**30}
        with pytest.raises(
            ConfigError, match=r"01_reproduce_the_leak: up to 1000000 keys per call .* GB of memory"
        ):
            parameters_for(choose_notebooks(["01"], plan.notebooks()), {}, given)

    @pytest.mark.parametrize(("name", "value"), BAD.items())
    def test_every_parameter_is_checked_in_plain_words(self, name, value):
        with pytest.raises(ConfigError, match=rf"{name}|/nowhere\.csv") as caught:
            parameters_for(plan.notebooks(), {}, {name: value})
        assert "<class" not in str(caught.value)

    def test_there_is_a_bad_value_for_every_parameter(self):
        every = set().union(*(plan._defaults(path) for path in plan.notebooks().values()))
        assert every - {"run_dir"} == set(BAD)

    def test_a_profile_is_checked_as_what_is_given_is(self, chosen):
        with pytest.raises(ConfigError, match="parameter queue of 00_holds: 'uring' is unknown"):
            parameters_for(chosen, {"all": {"queue": "uring"}}, {})

    def test_the_folder_of_a_run_is_not_a_parameter(self, chosen):
        with pytest.raises(ConfigError, match="run_dir is set by the run; choose its name with --run"):
            parameters_for(chosen, {}, {"run_dir": "/tmp"})

    def test_a_path_is_made_absolute_as_notebooks_run_in_the_folder_of_their_run(
        self, chosen, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "disk").mkdir()
        given = parameters_for(chosen, {}, {"storage_dir": "disk"})
        assert given["00_holds"]["storage_dir"] == f"{tmp_path}/disk"

    def test_a_whole_number_is_a_number_for_a_float(self, chosen):
        assert parameters_for(chosen, {}, {"margin": 2})["00_holds"]["margin"] == 2


class TestChoice:
    def test_without_a_wish_it_is_every_notebook_in_reading_order(self):
        names = list(choose_notebooks([], plan.notebooks()))
        assert names == sorted(names)
        assert names[0].startswith("01_")

    @pytest.mark.parametrize("wanted", ["02", "2", "02_apply_the_fix", "02_apply_the_fix.ipynb"])
    def test_a_number_a_name_or_a_file_stands_for_a_notebook(self, wanted):
        assert list(choose_notebooks([wanted], plan.notebooks())) == ["02_apply_the_fix"]

    def test_several_run_in_reading_order_and_once(self):
        chosen = list(choose_notebooks(["03", "01", "03"], plan.notebooks()))
        assert [name[:2] for name in chosen] == ["01", "03"]

    @pytest.mark.parametrize("wanted", ["77", "leak", "0", ""])
    def test_a_name_that_stands_for_none_or_for_several_is_refused_with_all(self, wanted):
        with pytest.raises(ConfigError, match=f"'{wanted}' is unknown; expected one of 01_.*, 02_.*, 03_"):
            choose_notebooks([wanted], plan.notebooks())

    def test_an_unknown_profile_is_refused_with_those_that_are_known(self):
        with pytest.raises(ConfigError, match="profile 'slow' is unknown; expected one of full, quick"):
            plan.read_profile("slow")
