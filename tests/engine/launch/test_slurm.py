"""The variables of srun are translated into those of torchrun."""

import re

import pytest

from wsbcn_mm.engine.launch.slurm import first_host, ports_of, slurm_to_torchrun, tasks_of_node, tasks_of_srun

SRUN = {
    'SLURM_PROCID': '9',
    'SLURM_NTASKS': '16',
    'SLURM_LOCALID': '1',
    'SLURM_NODELIST': 'gpu[03-04]',
    'SLURM_JOB_ID': '421337',
}


@pytest.mark.parametrize(
    ('nodes', 'host'),
    [
        ('localhost', 'localhost'),
        ('gpu1,gpu2', 'gpu1'),
        ('gpu[03-05,9],cpu1', 'gpu03'),
        ('gpu[7,9-11]', 'gpu7'),
        ('dgx-a100-[0012-0013]', 'dgx-a100-0012'),
        ('node[1-2]-ib', 'node1-ib'),
        ('rack[2-3]node[1-4],login', 'rack2node1'),
        ('gpu1.cluster.edu,gpu[2-3].cluster.edu', 'gpu1.cluster.edu'),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize('nodes', ['', ',gpu1', '[1-2'])
def test_a_node_list_without_a_host_is_rejected(nodes):
    message = f'SLURM_NODELIST={nodes!r}: a list of host names is expected'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        first_host(nodes)


def test_srun_variables_become_those_of_torchrun():
    assert slurm_to_torchrun(SRUN) == {
        'RANK': '9',
        'WORLD_SIZE': '16',
        'LOCAL_RANK': '1',
        'LOCAL_WORLD_SIZE': '1',
        'MASTER_ADDR': 'gpu03',
        'MASTER_PORT': str(10000 + 32 * 421337 % 20000),
    }


def test_an_address_and_a_port_that_are_set_are_kept():
    given = slurm_to_torchrun(SRUN | {'MASTER_ADDR': '10.0.0.7', 'MASTER_PORT': '4000'})
    assert (given['MASTER_ADDR'], given['MASTER_PORT']) == ('10.0.0.7', '4000')


def test_the_nodes_of_the_step_come_before_those_of_the_job():
    assert slurm_to_torchrun(SRUN | {'SLURM_STEP_NODELIST': 'gpu04'})['MASTER_ADDR'] == 'gpu04'


def test_jobs_and_steps_have_different_ports_below_the_ephemeral_ones():
    jobs = [SRUN | {'SLURM_JOB_ID': str(j), 'SLURM_STEP_ID': str(s)} for j in range(77_000, 77_100) for s in range(6)]
    ports = [int(slurm_to_torchrun(job)['MASTER_PORT']) for job in jobs]
    assert len(set(ports)) == len(ports)
    assert 10_000 <= min(ports) <= max(ports) < 30_000


@pytest.mark.parametrize(
    ('removed', 'named'),
    [
        (['SLURM_PROCID', 'SLURM_LOCALID'], 'SLURM_PROCID, SLURM_LOCALID'),
        (['SLURM_NODELIST'], 'SLURM_NODELIST'),
        (list(SRUN), 'SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID'),
    ],
)
def test_outside_srun_the_missing_variables_are_named(removed, named):
    message = (
        f"launcher='slurm' needs the variables of an srun task; missing: {named}. "
        'Start with tools/slurm_train.sh, or use --launcher pytorch under torchrun'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        slurm_to_torchrun({name: value for name, value in SRUN.items() if name not in removed})


def test_candidate_ports_differ_and_the_first_is_the_derived_one():
    ports = ports_of(SRUN)
    assert str(ports[0]) == slurm_to_torchrun(SRUN)['MASTER_PORT']
    assert len(set(ports)) == len(ports) == 4
    assert 10_000 <= min(ports) <= max(ports) < 30_000


@pytest.mark.parametrize(
    ('changed', 'tasks'),
    [
        ({}, 0),
        (dict(SLURM_STEP_ID='0'), 16),
        (dict(SLURM_STEPID='3'), 16),
        (dict(SLURM_STEP_ID='0', SLURM_STEP_NUM_TASKS='2'), 2),
        (dict(SLURM_STEP_ID=str(0xFFFFFFFA)), 0),
    ],
)
def test_only_a_step_of_srun_has_tasks(changed, tasks):
    assert tasks_of_srun(SRUN | changed) == tasks


def test_a_step_of_some_of_the_jobs_tasks_is_a_world_of_its_own():
    step = SRUN | {'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '12'}
    assert slurm_to_torchrun(step)['WORLD_SIZE'] == str(tasks_of_srun(step)) == '12'


@pytest.mark.parametrize(
    ('changed', 'tasks'),
    [
        ({}, 1),
        (dict(SLURM_TASKS_PER_NODE='8'), 8),
        (dict(SLURM_TASKS_PER_NODE='4(x2)', SLURM_NODEID='1'), 4),
        (dict(SLURM_TASKS_PER_NODE='4(x2),1,3(x2)', SLURM_NODEID='2'), 1),
        (dict(SLURM_TASKS_PER_NODE='4(x2),1,3(x2)', SLURM_NODEID='4'), 3),
        (dict(SLURM_TASKS_PER_NODE='8(x2)', SLURM_STEP_TASKS_PER_NODE='2(x2)'), 2),
    ],
)
def test_the_tasks_of_a_node(changed, tasks):
    assert tasks_of_node(SRUN | changed) == tasks
    assert slurm_to_torchrun(SRUN | changed)['LOCAL_WORLD_SIZE'] == str(tasks)
